//! Benchmarks of Commonhold against raw drivers and peers, as ratios in one run.
