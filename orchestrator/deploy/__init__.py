"""Files and calls for clusters: Kubernetes through KubeRay, and Slurm. Knows no Ray."""
