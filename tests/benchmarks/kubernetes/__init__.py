"""The life of a small cluster on Kubernetes, timed for dask-kubernetes and for daskfleet on the same node."""
