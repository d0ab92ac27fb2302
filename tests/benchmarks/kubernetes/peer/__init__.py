"""dask-kubernetes with its own operator, custom resources, permissions and client, as its chart installs it."""
