"""Case families times implementations: `compare` one case, `build` the matrix, `render` it."""
