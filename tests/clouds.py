"""Which kinds of object storage a test is run on; the fixture `bucket` makes one of each."""

import pytest

SLOW = pytest.mark.slow
ON_EVERY_CLOUD = pytest.mark.parametrize(
    "bucket", ["s3", pytest.param("gs", marks=SLOW), pytest.param("az", marks=SLOW)], indirect=True
)
BY_AZURES = pytest.mark.parametrize(
    "bucket", ["az", pytest.param("gs", marks=SLOW), pytest.param("s3", marks=SLOW)], indirect=True
)
"""For what sends no other requests than other tests do: moto takes five times as long as that server."""
