# SPDX-License-Identifier: Apache-2.0
"""Questions and answers, and the command line around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hauberk.cli import main
from hauberk.policy import explain
from hauberk.policy.explain import Explainer, Question, QuestionError
from hauberk.policy.rules import Action, ObjectKind, Operation, Origin, Rule, RuleSet, Section, Verdict

EXAMPLES = Path(__file__).parents[3] / "examples" / "policies"
SECRETS = str(EXAMPLES / "secrets-service.yaml")
SERVER = "/usr/local/bin/secrets-server"


def ask(*words: str) -> int:
    return main(["policy", "explain", *words])


def test_an_answer_names_rule_place_and_losers(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(SECRETS, "--operation", "read", "--path", "/var/lib/secrets/key", "--source", "/bin/cat") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "deny: read /var/lib/secrets/key by /bin/cat, its owner"
    assert lines[1].startswith(
        "  decided by: Block file directory /var/lib/secrets/ recursive (secrets-service spec.file."
    )
    assert "secrets-service.yaml:23:9)" in lines[1]
    assert lines[2] == "  message: secrets are read by the server alone"
    assert lines[3].endswith("has the shorter literal prefix")
    assert lines[4].endswith(f"limited to source {SERVER}")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("read", "/var/lib/secrets/key", SERVER), 0),
        (("write", "/var/lib/secrets/key", SERVER), 0),
        (("write", SERVER, SERVER), 1),
        (("write", "/usr/bin/x", "/bin/cat"), 1),
        (("write", "/var/lib/other", "/bin/cat"), 0),
        (("execute", SERVER, "/bin/cat"), 0),
        (("execute", "/bin/sh", SERVER), 1),
        (("map", "/usr/lib/libc.so.6", SERVER), 0),
        (("map", "/var/lib/secrets/evil.so", SERVER), 1),
        (("map", SERVER, SERVER), 0),
    ],
)
def test_the_exit_code_is_the_verdict(words: tuple[str, str, str], code: int) -> None:
    operation, path, source = words
    assert ask(SECRETS, "--operation", operation, "--path", path, "--source", source) == code


def test_json_tells_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(SECRETS, "--operation", "read", "--path", "/var/lib/secrets", "--not-owner", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "deny"
    assert answer["owner"] is False
    assert answer["rule"]["field"] == "spec.file.matchDirectories[1]"
    assert answer["rule"]["line"] == 23
    assert [entry["rule"]["action"] for entry in answer["lost"]] == ["Allow", "Allow"]


def test_audit_is_allowed_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    watch = str(EXAMPLES / "web-server.yaml")
    assert ask(watch, "--operation", "write", "--path", "/etc/hosts") == 0
    assert capsys.readouterr().out.startswith("audit: write /etc/hosts by a program that no rule names")


def test_a_workload_selects_policies(capsys: pytest.CaptureFixture[str]) -> None:
    question = ("--operation", "execute", "--path", "/bin/bash")
    web = ("--label", "app=web", "--namespace", "shop")
    assert ask(str(EXAMPLES), *question, *web, "--container-name", "nginx") == 1
    assert ask(str(EXAMPLES), *question, *web, "--container-name", "sidecar") == 0
    capsys.readouterr()
    assert ask(str(EXAMPLES), *question, "--label", "app=none", "--json") == 1
    assert "no policy covers" in json.loads(capsys.readouterr().out)["reason"]
    assert ask(str(EXAMPLES), *question, "--namespace", "other") == 1
    assert "no policy covers" in capsys.readouterr().out


def test_the_posture_decides_what_an_allow_list_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    question = (SECRETS, "--operation", "execute", "--path", "/bin/bash", "--posture")
    assert [ask(*question, posture) for posture in ("block", "audit", "allow")] == [1, 0, 0]
    verdicts = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert verdicts == ["deny", "audit", "allow"]


def test_paths_are_resolved_in_a_root_file_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/bin/busybox").write_text("")
    (tmp_path / "usr/bin/sh").symlink_to("busybox")
    question = (str(EXAMPLES / "web-server.yaml"), "--operation", "execute", "--rootfs", str(tmp_path))
    assert ask(*question, "--path", "/usr/bin/sh", "--source", "/bin/sh") == 1
    text = capsys.readouterr().out
    assert (
        "execute /usr/bin/sh (the kernel sees /usr/bin/busybox) by /bin/sh (the kernel sees /usr/bin/busybox)" in text
    )
    assert "Block process path /usr/bin/busybox" in text


def test_many_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [
        {"operation": "read", "path": "/var/lib/secrets/key", "source": None, "owner": True},
        {"operation": "read", "path": "/var/lib/secrets/key", "source": SERVER},
        {"operation": "execute", "path": "/bin/\udcff"},
    ]
    text = "\n".join(json.dumps(question) for question in questions) + "\n\n"
    file = tmp_path / "questions"
    file.write_text(text)
    assert ask(SECRETS, "--questions", str(file)) == 0
    printed = capsys.readouterr().out
    answers = [json.loads(line) for line in printed.splitlines()]
    assert [answer["verdict"] for answer in answers] == ["deny", "allow", "deny"]
    assert answers[0]["rule"] == "secrets-service spec.file.matchDirectories[1]"
    assert answers[2]["rule"] is None
    assert answers[2]["path"] == "/bin/\udcff"
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert ask(SECRETS, "--questions", "-") == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "a JSON object"),
        ("[]", "an object with operation and object or path"),
        ('{"operation": "read"}', "an object with operation and object or path"),
        ('{"operation": "read", "path": "/x", "user": 1}', "no fields but"),
        ('{"operation": "eat", "path": "/x"}', "an operation out of"),
        ('{"operation": [], "path": "/x"}', "an operation out of"),
        ('{"operation": "read", "path": 1}', "as text"),
        ('{"operation": "read", "path": "/x", "source": 1}', "as text"),
        ('{"operation": "read", "path": "/x", "owner": 1}', "true or false"),
        ('{"operation": "read", "path": "x"}', "an absolute path"),
        ('{"operation": "read", "path": "/x/"}', "an absolute path"),
        ('{"operation": "read", "path": "/x/../y"}', "an absolute path"),
        ('{"operation": "read", "path": "/x", "source": "y"}', "an absolute path"),
    ],
)
def test_a_question_that_cannot_be_asked(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(QuestionError):
        explain.parse_question(line)
    file = tmp_path / "questions"
    file.write_text("\n" + line + "\n")
    assert ask(SECRETS, "--questions", str(file)) == 2
    error = capsys.readouterr().err
    assert "question in line 2" in error
    assert words in error


def test_the_root_is_a_path() -> None:
    assert Question(Operation.READ, "/").object == "/"


def test_what_a_program_was_started_as_it_may_map() -> None:
    block = Rule(Section.PROCESS, ObjectKind.PATH, "/bin/a", Action.BLOCK, Origin("p", "f"))
    explainer = Explainer(RuleSet((block,)))
    assert explainer.ask(Question(Operation.MAP, "/bin/a", "/bin/a")).decision.verdict is Verdict.ALLOW
    assert explainer.ask(Question(Operation.MAP, "/bin/a", "/bin/b")).decision.verdict is Verdict.DENY
    assert explainer.ask(Question(Operation.EXECUTE, "/bin/a", "/bin/a")).decision.verdict is Verdict.DENY


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((SECRETS,), "no question"),
        ((SECRETS, "--operation", "read"), "no question"),
        ((SECRETS, "--questions", "-", "--path", "/x"), "one of them"),
        ((SECRETS, "--questions", "/nonexistent"), "/nonexistent unreadable"),
        (("/nonexistent", "--operation", "read", "--path", "/x"), "/nonexistent unreadable"),
        ((SECRETS, "--operation", "read", "--path", "/x", "--label", "app"), "KEY=VALUE"),
        ((SECRETS, "--operation", "read", "--path", "x"), "absolute path"),
        ((SECRETS, "--operation", "eat", "--path", "/x"), "invalid choice"),
        ((), "required"),
    ],
)
def test_wrong_usage_ends_with_two(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*words) == 2
    assert message in capsys.readouterr().err


def test_a_missing_root_file_system_ends_with_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(SECRETS, "--operation", "read", "--path", "/x", "--rootfs", "/nonexistent") == 3
    assert "no directory to use as root" in capsys.readouterr().err


# ---- check ----

BROKEN = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: x}
spec:
  selector: {matchLabels: {a: b}}
  action: block
  file: {matchPaths: [{path: "a,b:c%"}]}
"""


def test_check_accepts_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(EXAMPLES)]) == 0
    assert capsys.readouterr().out == "3 valid policies, 0 problems\n"


def test_check_reports_problems_in_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yml"
    file.write_text(BROKEN)
    assert main(["policy", "check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{file}:6:11: spec.action: found \"block\", expected Allow or Audit or Block. Did you mean 'Block'?"
    )
    assert lines[-1] == "0 valid policies, 2 problems"
    assert main(["policy", "check", str(file), "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is False
    assert [problem["line"] for problem in report["problems"]] == [6, 7]
    assert main(["policy", "check", str(file), "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"::error file={file},title=spec.action,line=6,col=11::found")
    assert "%25" in lines[1]
    assert "title=spec.file.matchPaths[0].path" in lines[1]


def test_check_of_a_directory_without_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(tmp_path)]) == 2
    assert "no *.yaml or *.yml file" in capsys.readouterr().err


def test_invalid_policies_answer_no_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(BROKEN)
    assert ask(str(file), "--operation", "read", "--path", "/x") == 1
    assert "spec.action" in capsys.readouterr().err


# ---- render ----


def test_render_shows_rules_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "render", "--engine", "bpf_lsm", SECRETS]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["allowLists"] == ["process", "file"]
    assert shown["privilegedSources"] == [SERVER]
    assert shown["rules"][0]["value"] == SERVER
    assert shown["table"]["sources"] >= 1
    assert shown["table"]["bytes"] > 0


def test_render_without_the_agent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "guest_agent"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "guest_agent", None)
    assert main(["policy", "render", "--engine", "bpf_lsm", SECRETS]) == 0
    assert json.loads(capsys.readouterr().out)["table"] is None


def test_render_of_an_uncovered_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "render", "--engine", "bpf_lsm", SECRETS, "--label", "a=b"]) == 1
    assert json.loads(capsys.readouterr().out)["rules"] is None


# ---- the command itself ----


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES.parents[1])}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "hauberk.cli", *words],
        env=environment, text=True, capture_output=True, check=False, **options,
    )  # fmt: skip


def test_the_module_is_the_command() -> None:
    assert run("--version").stdout.startswith("hauberk ")
    assert run("policy", "check", SECRETS).returncode == 0
    assert run("nothing").returncode == 2


def test_start_up_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hauberk.cli import main; main(['policy', 'check', '--help']);"
        "print(sorted({'yaml', 'pydantic', 'grpc', 'cryptography', 'guest_agent'} & set(sys.modules)))"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    questions.write_text('{"operation": "read", "path": "/x"}\n' * 20_000)
    command = f"'{sys.executable}' -m hauberk.cli policy explain '{SECRETS}' --questions '{questions}' | head -n 1"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES.parents[1])}
    done = subprocess.run(["sh", "-c", command], env=environment, text=True, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
