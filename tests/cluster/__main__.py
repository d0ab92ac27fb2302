"""``python -m tests.cluster COMMAND``: the Kubernetes of the tests and the demo, from a shell."""

from __future__ import annotations

import argparse
import sys

from . import Cluster, NoKubernetes, find, images, tools
from .progress import ClusterError, say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start the cluster, or find it running; prints its kubeconfig")
    down = commands.add_parser("down", help="take it down and leave nothing behind but caches")
    down.add_argument("--purge", action="store_true", help="remove its caches too")
    commands.add_parser("status", help="which cluster is used, whether it runs, its images")
    built = commands.add_parser("images", help="build daskfleet's images where their inputs changed, and load them")
    built.add_argument("--notebook", action="store_true", help="also the one with JupyterLab, for charts/daskfleet")
    load = commands.add_parser("load", help="load images that buildah or Docker has built")
    load.add_argument("image", nargs="+")
    commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    execute = commands.add_parser("exec", help="run a command where the pods' addresses can be reached")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    tool = commands.add_parser("tool", help="print the path of a tool, installing it where it is missing")
    tool.add_argument("name", choices=["kubectl", "helm", "kwok", "kind", "go"])
    arguments = parser.parse_args()
    try:
        if arguments.command == "tool":
            print(getattr(tools, arguments.name)())
            return 0
        return _run(find(), arguments)
    except (ClusterError, NoKubernetes) as error:
        say(str(error))
        return 1


def _run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "up":
            with cluster.lock():
                cluster.up()
            print(cluster.kubeconfig)
        case "down":
            with cluster.lock():
                (cluster.purge if arguments.purge else cluster.down)()
        case "status":
            print(f"{cluster.description}: {'running' if cluster.ready() else 'not running'}")
            print(f"kubeconfig: {cluster.kubeconfig}")
            for line in images.status(cluster):
                print(line)
        case "images":
            with cluster.lock():
                cluster.up()
                images.provide(cluster, *([images.NOTEBOOK] if arguments.notebook else []))
        case "load":
            with cluster.lock():
                cluster.load(arguments.image)
        case "kubeconfig":
            print(cluster.kubeconfig)
        case "exec":
            return cluster.execute(arguments.words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
