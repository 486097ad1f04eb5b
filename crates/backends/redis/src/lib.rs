//! The Redis backend of Commonhold: standalone, Sentinel and Cluster.
