import pytest
import tfds_data


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """A folder with prepared glue/sst2 and imdb_reviews."""
    path = tmp_path_factory.mktemp("tfds")
    tfds_data.write_sst2(path, num_rows=tfds_data.NUM_ROWS)
    tfds_data.write_imdb(path, num_rows=tfds_data.NUM_ROWS)
    return path
