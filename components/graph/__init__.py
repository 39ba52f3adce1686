"""Every setting of a graph: `schema` says what there is, `load` reads it."""
