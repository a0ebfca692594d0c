# SPDX-License-Identifier: Apache-2.0
"""The OCI state: what runtimes really send is taken, what can be read two ways is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.workloads.oci_state import OciState, OciStateError, parse

REAL = {
    "runc": (
        b'{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":4242,"bundle":"/run/b"}',
        OciState("web", "creating", 4242, "/run/b", {}, "1.0.2-dev"),
    ),
    "runc poststop": (
        b'{"ociVersion":"1.0.2-dev","id":"web","status":"stopped","bundle":"/run/b"}',
        OciState("web", "stopped", None, "/run/b", {}, "1.0.2-dev"),
    ),
    "crun": (
        (
            b'{"ociVersion":"1.0","id":"web","pid":77,"root":"/run/b/rootfs","bundle":"/run/b","status":"created",'
            b'"annotations":{"io.kubernetes.cri-o.ContainerName":"web"}}'
        ),
        OciState("web", "created", 77, "/run/b", {"io.kubernetes.cri-o.ContainerName": "web"}, "1.0"),
    ),
    "crun poststop": (
        b'{"ociVersion":"1.0","id":"web","pid":0,"root":"/b/r","bundle":"/b","status":"stopped","annotations":{}}',
        OciState("web", "stopped", None, "/b", {}, "1.0"),
    ),
    "kata shim": (
        b'{"ociVersion":"","id":"web","status":"","pid":99,"bundle":"/run/b","annotations":null}',
        OciState("web", "", 99, "/run/b", {}, ""),
    ),
    "kata agent": (
        (
            b'{"ociVersion":"1.1.0","id":"web","status":"created","pid":12,"bundle":"/run/kata-containers/web",'
            b'"annotations":{"io.kubernetes.cri.container-type":"container"}}'
        ),
        OciState(
            "web", "created", 12, "/run/kata-containers/web", {"io.kubernetes.cri.container-type": "container"}, "1.1.0"
        ),
    ),
}


@pytest.mark.parametrize("runtime", REAL)
def test_what_runtimes_send_is_taken(runtime: str) -> None:
    data, expected = REAL[runtime]
    state = parse(data)
    assert state == expected


def test_annotations_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        parse(REAL["crun"][0]).annotations["a"] = "b"  # type: ignore[index]


def changed(**members: object) -> bytes:
    document = {"ociVersion": "1.0", "id": "web", "status": "creating", "pid": 7, "bundle": "/b", **members}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("data", "where", "problem"),
    [
        (b"", "line 1, column 1", "not JSON"),
        (b"[]", "", "found an array"),
        (b"null", "", "found null"),
        (b'{"id":"a"} x', "line 1, column 12", "not JSON"),
        (b'\xef\xbb\xbf{"id":"a"}', "line 1, column 1", "not JSON"),
        ('{"id":"a"}'.encode("utf-16"), "byte 0", "not UTF-8"),
        (b'{"id":"\xff"}', "byte 7", "not UTF-8"),
        (b'{"id":"a","id":"b"}', "'id'", "found twice"),
        (b'{"id":"a","annotations":{"x":"1","x":"1"}}', "'x'", "found twice"),
        (b'{"id":"a","extra":{"deep":[{"y":1,"y":2}]}}', "'y'", "found twice"),
        (b'{"pid":NaN}', "", "found NaN"),
        (b'{"extra":[-Infinity]}', "", "found -Infinity"),
        (b'{"pid":' + b"9" * 5000 + b"}", "", "number too long"),
        (b"[" * 500_000, "", "nested too deep"),
        (b'{"a":' * 100_000, "", "nested too deep"),
        (b" " * (1 << 20) + b"{}", "", "expected at most 1048576"),
        (changed(id=...), "id", "missing"),
        (changed(id=None), "id", "found null"),
        (changed(id=7), "id", "found an integer"),
        (changed(id=""), "id", "found 0 characters"),
        (changed(id="a/b"), "id", "without '/'"),
        (changed(id=".."), "id", "expected a name"),
        (changed(id="a\nb"), "id", r"found 'a\nb'"),
        (changed(id="a\x00b"), "id", "control characters"),
        (changed(id="a" * 1025), "id", "found 1025 characters"),
        (changed(id="\ud800"), "id", "surrogate"),
        (changed(status="paused"), "status", "found 'paused'"),
        (changed(status=None), "status", "found null"),
        (changed(status=["created"]), "status", "found an array"),
        (changed(pid=-1), "pid", "found -1"),
        (changed(pid=(1 << 22) + 1), "pid", "expected 0 to 4194304"),
        (changed(pid=7.0), "pid", "found a number"),
        (changed(pid="7"), "pid", "found a string"),
        (changed(pid=True), "pid", "found a boolean"),
        (changed(pid=None), "pid", "found null"),
        (changed(bundle=...), "bundle", "missing"),
        (changed(bundle="run/b"), "bundle", "expected an absolute path"),
        (changed(bundle=""), "bundle", "expected an absolute path"),
        (changed(bundle="/a\x00b"), "bundle", "expected an absolute path"),
        (changed(bundle="/" + "a" * 4095), "bundle", "expected at most 4095"),
        (changed(bundle={}), "bundle", "found an object"),
        (changed(annotations=[]), "annotations", "found an array"),
        (changed(annotations={"a": 1}), "annotations['a']", "found an integer"),
        (changed(annotations={"a": None}), "annotations['a']", "found null"),
        (changed(annotations={"a": "\ud800"}), "annotations['a']", "surrogate"),
        (changed(annotations={"\ud800": "a"}), "annotations", "surrogate"),
        (changed(ociVersion=1.0), "ociVersion", "found a number"),
    ],
)
def test_anything_else_is_refused_where_it_stands(data: bytes, where: str, problem: str) -> None:
    with pytest.raises(OciStateError) as caught:
        parse(data)
    assert caught.value.field == where
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)


def test_an_error_does_not_repeat_what_an_annotation_holds() -> None:
    with pytest.raises(OciStateError) as caught:
        parse(changed(annotations={"token": ["hunter2"]}))
    assert "hunter2" not in str(caught.value)


@given(st.binary(max_size=300))
def test_bytes_are_a_state_or_a_located_error(data: bytes) -> None:
    try:
        state = parse(data)
    except OciStateError:
        return
    assert state.id


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "status", "pid", "bundle", "annotations", "ociVersion", "root"]), JSON_VALUES
    )
)
def test_whatever_is_taken_keeps_what_the_registry_relies_on(members: dict[str, Any]) -> None:
    try:
        state = parse(json.dumps({"id": "web", "bundle": "/b", **members}).encode())
    except OciStateError:
        return
    assert state.id
    assert "/" not in state.id
    assert state.bundle.startswith("/")
    assert state.pid is None or state.pid > 0
    assert all(isinstance(text, str) for pair in state.annotations.items() for text in pair)
