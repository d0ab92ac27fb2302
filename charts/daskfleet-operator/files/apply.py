"""Apply the resource definitions in this folder, server-side; the operator's image runs it before installs and
upgrades.

Server-side apply takes YAML as it is, makes what is absent, changes what is there, whoever made it, and keeps what
others have added. The standard library is enough for that.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST = os.environ["KUBERNETES_SERVICE_HOST"]
SERVER = f"https://{f'[{HOST}]' if ':' in HOST else HOST}:{os.environ['KUBERNETES_SERVICE_PORT']}"
QUERY = "fieldManager=daskfleet-operator&force=true"

context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
headers = {
    "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
    "Content-Type": "application/apply-patch+yaml",
}
for path in sorted(Path(__file__).parent.glob("*.yaml")):
    name = f"{path.stem}s.kubernetes.dask.org"
    url = f"{SERVER}/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}?{QUERY}"
    request = urllib.request.Request(url, data=path.read_bytes(), headers=headers, method="PATCH")
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            sys.stdout.write(f"{name}: {'made' if answer.status == 201 else 'up to date'}\n")
    except urllib.error.HTTPError as error:
        sys.exit(f"{name}: the API server answers {error.code}: {error.read().decode(errors='replace')[:1000]}")
