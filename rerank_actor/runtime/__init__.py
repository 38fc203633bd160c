"""The runtime: work and items in; the same work done on Ray, watched, and ended when it must out.

The connection and its signals (`connection`), work in the background of the driver (`background`), tasks and stores made by
them (`tasks`, `store_builder`), how many engines there are (`pool`), what ends one that hangs (`watchdog`), who is told
(`notifications`), and files of clusters (`cluster_file`, `kuberay`). Knows nothing of what the work is.
"""
