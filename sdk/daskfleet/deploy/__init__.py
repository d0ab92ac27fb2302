"""Cluster managers: every one a `daskfleet.deploy.cluster.Cluster`."""
