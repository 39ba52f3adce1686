"""The benchmarks' own logic: registry, statistics, page. What they measure is not asserted anywhere."""
