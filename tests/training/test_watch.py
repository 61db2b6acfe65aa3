"""What a step that failed is said to have seen."""

import numpy as np

from contextdiff_jax.training.watch import in_rows


def test_processes_in_any_order_make_the_rows_of_the_batch():
    """Of four processes the first and the third share the second half of the rows, the others the first."""
    first, second = np.array([7, 3, 5]), np.array([1, 0, 9])
    rows = in_rows(np.stack([second, first, second, first]), np.array([1, 0, 1, 0], np.int32))
    np.testing.assert_array_equal(rows, [7, 3, 5, 1, 0, 9])
