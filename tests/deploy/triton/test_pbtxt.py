"""The text format, read back by protobuf's own library."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from fastervit_trt.deploy.triton.pbtxt import Symbol, entries, pbtxt


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_any_text_comes_back_as_it_was(parameters: dict[str, str], dims: list[int]) -> None:
    fields = {
        "parameters": entries({key: {"string_value": value} for key, value in parameters.items()}),
        "input": [{"name": "a", "dims": dims}, {"name": "b"}],
    }
    text = pbtxt(fields)
    assert all(line.isascii() and line.isprintable() for line in text.split("\n"))  # whatever reads or prints it
    config = text_format.Parse(text, pb.ModelConfig())
    assert {key: value.string_value for key, value in config.parameters.items()} == parameters
    assert list(config.input[0].dims) == dims
    assert [tensor.name for tensor in config.input] == ["a", "b"]


def test_every_kind_of_value() -> None:
    text = pbtxt(
        {
            "name": 'a "b"\\\n\té',
            "backend": None,
            "max_batch_size": 8,
            "version_policy": {"all": {}},
            "instance_group": [{"kind": Symbol("KIND_CPU"), "profile": []}],
            "response_cache": {"enable": False},
            "optimization": {"cuda": {"graphs": True}},
            "sequence_batching": {"direct": {"minimum_slot_utilization": 0.5}},
        }
    )
    config = text_format.Parse(text, pb.ModelConfig())
    assert config.name == 'a "b"\\\n\té'
    assert not config.backend
    assert config.max_batch_size == 8
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    assert config.HasField("response_cache")
    assert config.optimization.cuda.graphs
    assert config.sequence_batching.direct.minimum_slot_utilization == 0.5
    with pytest.raises(TypeError, match="no value of a protobuf message"):
        pbtxt({"name": b"bytes"})
