"""One-off measurements that decided something."""
