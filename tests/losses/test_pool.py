"""Structures beside the labelled ones."""

import pytest

from pimlip_zoo.errors import InputError
from pimlip_zoo.losses.pool import Pool


@pytest.mark.parametrize("key", ["weak.unlabelled", None])
def test_none_at_all_are_refused_by_the_key_of_whoever_asks(key):
    with pytest.raises(InputError, match="no structure beside the labelled ones") as refused:
        Pool([], 4, key)
    assert refused.value.key == key
