"""moto's S3 server in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import boto3
from botocore.config import Config

from tests.ports import free_port

BUCKET: Final = "store"
CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "AKMOTO", "AWS_SECRET_ACCESS_KEY": "moto-secret"}
_READY: Final = "Running on "
_ALL_READ: Final = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:*",  # s3:GetObject is enough for HEAD too, but not to moto
            "Resource": f"arn:aws:s3:::{BUCKET}/*",
        }
    ],
}


@contextmanager
def moto_s3() -> Iterator[str]:
    """The URL of one that answers and has an empty bucket, which anyone may read."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | CREDENTIALS,
    )
    assert server.stderr is not None
    drain = None
    try:
        while _READY not in (line := server.stderr.readline()):
            assert line, "moto ended before it listened"
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=BUCKET)
        client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(_ALL_READ))
        client.close()
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        yield url
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()
        if drain is not None:
            drain.wait()
