"""What must stay secret is recognised, and kept out of messages."""

import pytest

from megatrain.base.credentials import credentials_in, is_secret_name, without_credentials


@pytest.mark.parametrize(
    "text",
    [
        "http://me:S3CRET@host/data",
        "HTTPS://me:S3CRET@host:8080/data?x=1",
        "s3://AKIA:S3CRET/with/slash@bucket/x",
        "https://S3CRET@github.com/x",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Signature=S3CRET",
        "https://host/x?token=S3CRET",
        "https://host/x?access_token=S3CRET#y",
        "https://account.blob.core.windows.net/x?sv=1&sig=S3CRET",
        "https://host/x?api-key=S3CRET",
        "pipe:curl -H 'Authorization: Basic S3CRET' https://host/x",
        "pipe:curl -H 'X: Bearer S3CRET' https://host/x",
    ],
)
def test_credentials_are_found_and_redacted(text):
    assert credentials_in(text)
    assert "S3CRET" not in credentials_in(text)
    assert "S3CRET" not in without_credentials(text)
    assert credentials_in(without_credentials("data/x")) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "data/train",
            "/a:b@c",
            "hub:allenai/c4@main?subset=en&split=train",
            "https://host:8080/a@v1/x",
            "s3://bucket/x",
        ),
        *("https://host/x?version=3&monkey=2", "http://[::1]:80/x", "pipe:zcat a.tar.gz", "me@host", "file:///a:b@c"),
    ],
)
def test_what_is_no_secret(text):
    assert credentials_in(text) is None
    assert without_credentials(text) == text


def test_names_of_secrets():
    secret = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "wandb_api_key", "PGPASSWORD", "GOOGLE_APPLICATION_CREDENTIALS")
    assert all(map(is_secret_name, secret))
    assert not any(map(is_secret_name, ("NCCL_DEBUG", "OMP_NUM_THREADS", "HF_HOME", "CUDA_VISIBLE_DEVICES")))
