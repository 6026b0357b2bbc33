"""schemathesis reads the server's own OpenAPI document, asks for all that it allows and forbids, and finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_mpi import running, skipjoin
from tiny_model import write_tiny_model

pytestmark = [pytest.mark.fuzz, pytest.mark.mpi, pytest.mark.timeout(1800)]

CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
CHECKS += ["negative_data_rejection", "unsupported_method", "allow_header_conformance"]


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    with running(skipjoin(model, "--threads", "1", "--max-context", "64"), tmp_path / "log") as server:
        document = server.url.replace("/v1", "/openapi.json")
        options = ["--checks", ",".join(CHECKS), "--max-examples", "100", "--seed", "1", "--request-timeout", "60"]
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", document, *options]
        done = subprocess.run(command, cwd=tmp_path, check=False)
        assert done.returncode == 0
        assert server.metric("skipjoin_jobs") == 0
