# SPDX-License-Identifier: Apache-2.0
"""Every row of ``docs/kubearmor-differences.md`` is held by tests; here is by which, and those without a better place.

A test is named as ``module::function``, below ``tests``. A row without tests, a test that is not there, and a row that
is gone from the guide all fail.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from hauberk.errors import PolicyError
from hauberk.policy import globs, models, normalise
from hauberk.policy.explain import Explainer, Question
from hauberk.policy.rules import Action, ObjectKind, Operation, Origin, Rule, RuleSet, Section, Verdict, join
from hauberk.policy.selectors import Selector, WorkloadIdentity
from tests.unit.policy.documents_of_each_kind import HOST, NETWORK, QUOTA

TESTS = Path(__file__).parents[2]
GUIDE = TESTS.parent / "docs" / "kubearmor-differences.md"

HERE = "unit/policy/test_differences"
RULES = "unit/policy/test_rules"
PRECEDENCE = "unit/policy/test_precedence"
NORMALISE = "unit/policy/test_normalise"
SELECTORS = "unit/policy/test_selectors"
KINDS = "unit/policy/test_models_kinds"
MODELS = "unit/policy/test_models"
ANSWERS = "unit/policy/test_answers"
ACTIVATION = "unit/agent/test_activation"
PLAN = "unit/engines/nftables/test_plan"
ATTACKS = "vm/guest/test_attacks"
DIFFERENTIAL = "vm/guest/test_differential::test_explain_and_the_kernel_agree"

ROWS: dict[str, tuple[str, ...]] = {
    # what a rule means
    "any Allow rule, also with `fromSource`": (f"{RULES}::test_precedence_of_file_rules",),
    "`process` and `file` allow-lists": (f"{RULES}::test_precedence_of_file_rules",),
    "order of precedence": (f"{RULES}::test_precedence_of_file_rules", f"{RULES}::test_why_rules_lost"),
    "two rules for the same path": (f"{RULES}::test_order_never_matters",),
    "`ownerOnly` with Block or Audit": (f"{RULES}::test_precedence_of_file_rules",),
    "`readOnly` with Audit": (f"{RULES}::test_precedence_of_file_rules",),
    "`readOnly` with Block": (f"{RULES}::test_precedence_of_file_rules",),
    "`fromSource` of a process rule": (f"{RULES}::test_precedence_of_process_rules", f"{HERE}::test_who_calls_exec"),
    "source of a task": (f"{ATTACKS}::test_only_the_privileged_source_reads_the_secret", DIFFERENTIAL),
    "Audit": ("unit/agent/test_events::test_an_audited_program_passed", DIFFERENTIAL),
    "alert about a rule that allows its owner, or reading, and refuses the rest": (
        "unit/agent/test_events::test_an_alert_names_policy_rule_process_path_and_container",
        f"{HERE}::test_the_far_side_of_a_condition_names_the_rule",
    ),
    "process rules": (f"{RULES}::test_precedence_of_process_rules", DIFFERENTIAL),
    "library directories": (
        f"{RULES}::test_an_allow_list_of_programs_maps_libraries_that_nobody_can_change",
        f"{RULES}::test_what_a_source_with_rights_is_made_of_cannot_be_changed",
    ),
    "`execname`": (f"{RULES}::test_precedence_of_process_rules",),
    "`allowedArgs` with Block": (
        f"{PRECEDENCE}::test_allowed_arguments",
        f"{PRECEDENCE}::test_allowed_arguments_grant_nothing",
    ),
    "`allowedArgs` with Allow": (f"{PRECEDENCE}::test_allowed_arguments",),
    "`allowedArgs` with Audit": (f"{PRECEDENCE}::test_allowed_arguments",),
    "what `allowedArgs` compares": (f"{PRECEDENCE}::test_allowed_arguments",),
    "a program with `allowedArgs` mapped by the dynamic loader": (f"{PRECEDENCE}::test_allowed_arguments",),
    "`pts: false` with Block": (
        f"{PRECEDENCE}::test_pts_false_is_for_those_without_a_terminal",
        f"{PRECEDENCE}::test_a_block_rule_with_pts_grants_nothing",
    ),
    "`pts: false` with Allow": (f"{PRECEDENCE}::test_pts_false_is_for_those_without_a_terminal",),
    "`pts: true`": (f"{NORMALISE}::test_conditions_of_rules_about_programs",),
    "mounts, `chroot`, user namespaces made inside a container": (f"{ATTACKS}::test_attacks_are_refused",),
    "sections with a posture of their own": (f"{PRECEDENCE}::test_postures_of_sections",),
    # what a path matches
    "`matchPatterns`": ("unit/policy/test_globs::test_what_a_pattern_matches", DIFFERENTIAL),
    "symbolic links in rules": (
        "unit/policy/test_resolution::test_rules_are_copied_to_all_forms",
        "vm/guest/test_successor::test_a_link_made_since_opens_nothing",
    ),
    "deep and long paths": (
        f"{HERE}::test_deep_and_long_paths_are_matched",
        "vm/guest/test_engine_successor::test_a_task_whose_path_is_too_long_to_be_told_gets_nothing",
    ),
    "hard links": (
        "unit/policy/test_resolution::test_files_with_another_name",
        "unit/agent/test_facts::test_the_other_name_of_a_hard_link_is_protected_alike",
    ),
    "directory rules": (
        "unit/policy/test_globs::test_what_the_other_kinds_match",
        f"{HERE}::test_deep_and_long_paths_are_matched",
    ),
    "number of rules": (
        "unit/engines/bpf_lsm/test_plan::test_ten_thousand_exact_paths_fit",
        f"{MODELS}::test_many_rules_are_refused",
    ),
    # sockets, names, capabilities
    "socket type and protocol": (f"{PRECEDENCE}::test_precedence_of_sockets",),
    "`protocol: all`": (f"{PRECEDENCE}::test_precedence_of_sockets",),
    "`tcp` and Unix sockets": (f"{PRECEDENCE}::test_precedence_of_sockets",),
    "`packet`": (f"{PRECEDENCE}::test_precedence_of_sockets",),
    "names and sockets": (f"{PRECEDENCE}::test_names_and_sockets_are_lists_of_their_own",),
    "`domain`": (f"{PRECEDENCE}::test_precedence_of_names",),
    "wildcards in `domain`": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "upper and lower case in names": (f"{PRECEDENCE}::test_precedence_of_names",),
    "names that resolvers expand": (
        f"{PRECEDENCE}::test_precedence_of_names",
        "unit/policy/test_objects::test_what_a_resolver_in_kubernetes_asks_for",
    ),
    "long names": (f"{HERE}::test_names_are_compared_whole",),
    "two rules for one protocol, name or capability": (f"{PRECEDENCE}::test_order_never_matters",),
    # system calls, presets, profiles
    "action of a system call rule": (
        f"{NORMALISE}::test_calls_are_audited_whatever_the_policy_says",
        f"{PRECEDENCE}::test_calls_are_only_ever_audited",
    ),
    "path of a system call rule": (
        f"{PRECEDENCE}::test_calls_are_only_ever_audited",
        f"{ANSWERS}::test_in_a_root_file_system_calls_are_about_what_links_lead_to",
    ),
    "`dir` in `fromSource`": (f"{PRECEDENCE}::test_calls_are_only_ever_audited",),
    "action of a preset": (
        f"{NORMALISE}::test_presets_are_audited_or_blocked",
        f"{KINDS}::test_what_is_tolerated_is_warned_of",
    ),
    "presets and system calls as allow-lists": (
        f"{PRECEDENCE}::test_presets_are_never_an_allow_list",
        f"{PRECEDENCE}::test_calls_are_only_ever_audited",
    ),
    "`apparmor`": (
        f"{NORMALISE}::test_a_container_policy_has_rules_in_every_section_of_its_kind",
        "unit/policy/test_coverage::test_other_sections_are_named_and_not_held",
    ),
    # devices
    "which device rule decides": (f"{PRECEDENCE}::test_precedence_of_devices",),
    "`class: ALL`": (f"{PRECEDENCE}::test_precedence_of_devices",),
    "letters of a class": (f"{NORMALISE}::test_a_host_policy_has_devices",),
    "devices that no rule names": (f"{PRECEDENCE}::test_precedence_of_devices",),
    "a class against a level": (f"{PRECEDENCE}::test_precedence_of_devices",),
    # packets
    "a rule with addresses of one family": (f"{PRECEDENCE}::test_precedence_of_packets",),
    "which rule decides": (f"{PRECEDENCE}::test_precedence_of_packets", f"{PRECEDENCE}::test_order_never_matters"),
    "when directions are allow-lists": (f"{PRECEDENCE}::test_each_direction_is_a_list_of_its_own",),
    "network posture `allow`": (f"{PRECEDENCE}::test_postures_of_sections",),
    "`limit` and its neighbours": (f"{PRECEDENCE}::test_a_quota_grants_nothing_and_hides_no_other_quota",),
    "`limit` with Allow": (f"{PRECEDENCE}::test_a_quota_narrows_a_rule",),
    "`limit` with Block": (f"{PRECEDENCE}::test_a_quota_narrows_a_rule",),
    "two quotas that match a packet": (f"{PLAN}::test_every_quota_counts_what_the_others_let_pass",),
    "what a quota has counted": (
        f"{PLAN}::test_a_quota_keeps_its_name_while_its_rule_says_the_same_but_for_the_limit",
    ),
    "packets that hosts cannot do without": ("unit/policy/test_exemptions::test_who_is_exempt",),
    "connections that a rule newly forbids": (
        "host/network/test_engine_flows::test_a_connection_out_that_is_forbidden_now_ends",
    ),
    "connections that no policy is about": (f"{PLAN}::test_what_refuses_and_tells_nothing_costs_nothing",),
    "long names of policies": (f"{PLAN}::test_names_are_short_and_nothing_of_a_policy_is_text",),
    "tables and log group": (
        "host/network/test_agent_network::test_what_is_in_force_outlives_the_agent",
        "host/network/test_engine::test_removing_takes_our_table_and_no_other",
    ),
    "packets that a host forwards": (
        f"{PLAN}::test_the_machines_rules_are_not_about_what_it_forwards_but_a_workloads_are",
    ),
    "text in rules": (f"{HERE}::test_text_for_another_program_is_refused",),
    # what is accepted
    "unknown fields": ("unit/policy/test_models_mutations::test_an_unknown_field_is_told",),
    "`action: block`": (f"{MODELS}::test_a_mistake_is_told_at_its_place",),
    "rules that no engine enforces": (
        f"{ACTIVATION}::test_a_sealed_agent_does_not_start_and_names_each_rule",
        f"{ACTIVATION}::test_a_host_enforces_the_rest_and_tells",
    ),
    "wildcards in `path` of `matchPaths`": (f"{KINDS}::test_what_is_tolerated_is_warned_of",),
    "`fromSource` empty or null": (
        f"{KINDS}::test_what_is_tolerated_is_warned_of",
        f"{MODELS}::test_a_mistake_is_told_at_its_place",
    ),
    'no selector, empty selector, empty `kubearmor.io/container.name` (`""`, `"[]"`)': (
        f"{KINDS}::test_a_container_policy_without_a_selector_covers_its_namespace",
        f"{SELECTORS}::test_what_a_selector_matches",
    ),
    "`dir` without its slash": (f"{KINDS}::test_what_is_tolerated_is_warned_of",),
    "`fromSource` missing at a host's protocols and capabilities": (f"{KINDS}::test_what_is_tolerated_is_warned_of",),
    "`namespace` at a kind that has none": (f"{KINDS}::test_what_is_tolerated_is_warned_of",),
    "protocols and capabilities": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "capabilities": (f"{KINDS}::test_every_field_is_accepted",),
    "system calls": (f"{KINDS}::test_every_field_is_accepted",),
    "USB `class`, `subClass`, `protocol`, `level`": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "bad CIDR or service name in a network policy": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "`cidr` with bits behind its prefix, or without a prefix": (
        f"{KINDS}::test_what_is_tolerated_is_warned_of",
        f"{NORMALISE}::test_bits_behind_a_prefix_do_not_count",
    ),
    "service names": (f"{NORMALISE}::test_a_network_policy_has_packets_in_two_directions",),
    "`limit` without `duration`, or less than a second": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "entries for containers without `limit`": (f"{HERE}::test_what_would_be_about_all_traffic_is_refused",),
    "`port` that is empty": (f"{HERE}::test_what_would_be_about_all_traffic_is_refused",),
    "`severity` at entries of network policies": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "networks in one entry": ("unit/policy/test_cilium::test_a_hundred_thousand_networks_are_taken_and_no_more",),
    "policies of Cilium and of Kubernetes": (
        "unit/policy/test_cilium::test_entries_say_what_the_guide_says",
        "unit/policy/test_kubernetes::test_entries_allow_what_the_definition_says",
    ),
    "policy or section without rules": (f"{MODELS}::test_a_policy_that_does_nothing_is_refused",),
    "paths with `..`, `.`, `//`; `/proc/self`": (f"{MODELS}::test_a_mistake_is_told_at_its_place",),
    "regular expressions for container and host names": (
        f"{SELECTORS}::test_what_cannot_be_used_is_refused",
        f"{SELECTORS}::test_a_hostile_name_is_matched_in_linear_time",
    ),
    "container name as a list or an expression": (f"{SELECTORS}::test_what_a_selector_matches",),
    "special label in an expression": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "names in selectors that nothing has": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "`/` at the end of a pattern": (f"{KINDS}::test_a_mistake_is_told_at_its_line",),
    "groups and classes in `path`, `dir`, `execname`": (f"{KINDS}::test_what_is_tolerated_is_warned_of",),
    "container name as an expression": (f"{SELECTORS}::test_what_a_selector_matches",),
    "two policies of one name": (f"{MODELS}::test_two_policies_of_one_name_are_refused",),
    # who is covered
    "namespace without Kubernetes": (f"{SELECTORS}::test_namespaces",),
    "workload covered by no policy": (
        f"{NORMALISE}::test_an_uncovered_workload_gets_none_instead_of_an_empty_rule_set",
        "vm/guest/test_agent::test_a_container_that_no_policy_covers_is_refused",
    ),
    "workload covered only by policies that nothing enforces": (
        f"{ACTIVATION}::test_a_policy_of_which_nothing_is_enforced_takes_nobody_out_of_the_default",
    ),
    "labels with both In and NotIn": (f"{SELECTORS}::test_what_a_selector_matches",),
    "`NotIn` and what has no labels": (
        f"{SELECTORS}::test_a_workload_of_which_nothing_is_known_matches_only_what_asks_for_nothing",
    ),
    "namespaces with both In and NotIn": (f"{SELECTORS}::test_cluster_policies_select_namespaces",),
    "unknown container name": (
        f"{SELECTORS}::test_a_workload_of_which_nothing_is_known_matches_only_what_asks_for_nothing",
    ),
    "containers in the host's pid namespace": (f"{SELECTORS}::test_no_policy_covers_a_host_and_a_container",),
    "Allow rules for hosts without `fromSource`": (f"{HERE}::test_a_host_has_allow_lists_too",),
    "`hostnamereg`": (f"{SELECTORS}::test_host_policies_select_hosts_by_name",),
    "`kubernetes.io/hostname`": (f"{SELECTORS}::test_a_host_s_label_is_its_name_where_it_has_one",),
    "default posture": (f"{HERE}::test_an_allow_list_refuses_the_rest_unless_somebody_says_otherwise",),
    "annotation `kubearmor-policy: disabled` or `audited`": (
        "unit/policy/test_annotations::test_what_a_mode_makes_of_decisions",
        f"{HERE}::test_the_agent_does_not_read_annotations_of_policies",
    ),
    "posture annotations of a namespace": (
        "unit/policy/test_annotations::test_postures_of_a_namespace_reach_every_section_of_their_class",
        "unit/policy/test_annotations::test_invalid_values_are_told_with_their_place",
        f"{HERE}::test_the_agent_does_not_read_annotations_of_policies",
    ),
}


def rows() -> list[str]:
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    return [
        line[2:].partition(" | ")[0] for line in lines if line.startswith("| ") and not line.startswith("| subject")
    ]


@functools.cache
def functions(module: str) -> frozenset[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_row_of_the_guide_is_held_by_tests() -> None:
    found = rows()
    assert not set(found) - ROWS.keys(), "rows of the guide for which ROWS names no tests"
    assert not ROWS.keys() - set(found), "rows that are gone from the guide"
    assert len(set(found)) == len(found), "two rows of one subject"


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_of_a_row_are_there(row: str) -> None:
    assert ROWS[row]
    for name in ROWS[row]:
        module, _, function = name.partition("::")
        assert function in functions(module), name


# ---- rows whose tests have no better place ----


def file_rule(kind: ObjectKind, value: str, action: Action = Action.BLOCK, **more: bool) -> Rule:
    return Rule(Section.FILE, kind, value, action, Origin("p", "f"), **more)  # type: ignore[arg-type]


def test_who_calls_exec() -> None:
    rule = Rule(Section.PROCESS, ObjectKind.PATH, "/bin/ls", Action.BLOCK, Origin("p", "f"), sources=("/bin/sh",))
    explainer = Explainer(RuleSet((rule,)))
    by_shell = explainer.ask(Question(Operation.EXECUTE, "/bin/ls", "/bin/sh", parent="/bin/init"))
    by_child_of_shell = explainer.ask(Question(Operation.EXECUTE, "/bin/ls", "/bin/env", parent="/bin/sh"))
    assert by_shell.decision.verdict is Verdict.DENY
    assert by_child_of_shell.decision.verdict is Verdict.ALLOW


def test_the_far_side_of_a_condition_names_the_rule() -> None:
    for condition, operation, owner in (
        ("read_only", Operation.WRITE, True),
        ("owner_only", Operation.READ, False),
    ):
        rule = file_rule(ObjectKind.PATH, "/x", Action.ALLOW, **{condition: True})
        answer = Explainer(RuleSet((rule,))).ask(Question(operation, "/x", owner=owner))
        assert answer.decision.verdict is Verdict.DENY
        assert answer.decision.rule is rule


def test_deep_and_long_paths_are_matched() -> None:
    directory = "/" + "/".join(f"directory{number}" for number in range(60)) + "/"
    assert len(directory) > 200
    for rule in (
        file_rule(ObjectKind.DIRECTORY, directory),
        file_rule(ObjectKind.DIRECTORY, "/directory0/directory1/", recursive=True),
        file_rule(ObjectKind.PATH, directory + "x"),
        file_rule(ObjectKind.PATTERN, directory + "*"),
    ):
        assert globs.matches(rule, directory + "x")
        assert not globs.matches(rule, "/directory0/x")


def test_names_are_compared_whole() -> None:
    labels = [f"label{number}" for number in range(30)]
    rule = Rule(Section.DNS, ObjectKind.DOMAIN, ".".join(labels[1:]), Action.BLOCK, Origin("p", "f"))
    explainer = Explainer(RuleSet((rule,)))
    assert len(rule.value) > 63
    for name, verdict in ((".".join(labels), Verdict.DENY), (".".join([*labels[:-1], "other"]), Verdict.ALLOW)):
        assert explainer.ask(Question(Operation.RESOLVE, name)).decision.verdict is verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('port: "443"', 'port: "443 accept\\nadd rule ip filter INPUT accept"'),
        ("cidr: 10.0.0.0/8", 'cidr: "0.0.0.0/0 accept }"'),
        ("eth0", '"eth0\\" accept; #"'),
        ("name: packets", 'name: "packets accept"'),
    ],
)
def test_text_for_another_program_is_refused(old: str, new: str) -> None:
    assert old in NETWORK
    with pytest.raises(PolicyError):
        models.load([("p.yaml", NETWORK.replace(old, new, 1).encode())])


@pytest.mark.parametrize(
    ("text", "old", "new", "field"),
    [
        (QUOTA, '    - limit: "5"\n      duration: 24h', "    - severity: 2", "spec.ingress[0]"),
        (NETWORK, '"443"', '""', "spec.ingress[0].ports[0].port"),
    ],
)
def test_what_would_be_about_all_traffic_is_refused(text: str, old: str, new: str, field: str) -> None:
    assert old in text
    with pytest.raises(PolicyError) as caught:
        models.load([("p.yaml", text.replace(old, new).encode())])
    assert {problem.field for problem in caught.value.problems} == {field}


def test_a_host_has_allow_lists_too() -> None:
    without = HOST.replace("        fromSource: [{path: /usr/bin/ping}]\n", "        action: Allow\n")
    policies = models.load([("p.yaml", without.encode())])
    found = normalise.rule_set(policies, WorkloadIdentity(host=True, host_name="node-1", labels=LINUX))
    assert found is not None
    answers = [Explainer(found).ask(Question(Operation.SOCKET, socket)).decision for socket in ("raw", "tcp")]
    assert [decision.verdict for decision in answers] == [Verdict.ALLOW, Verdict.DENY]


LINUX = {"kubernetes.io/os": "linux"}


def test_an_allow_list_refuses_the_rest_unless_somebody_says_otherwise() -> None:
    rule = file_rule(ObjectKind.PATH, "/x", Action.ALLOW)
    assert RuleSet((rule,)).posture is Verdict.DENY
    assert join((rule,)).posture_of(Section.FILE) is Verdict.DENY
    assert Explainer(join((rule,))).ask(Question(Operation.READ, "/y")).decision.verdict is Verdict.DENY


def test_the_agent_does_not_read_annotations_of_policies() -> None:
    sources = [*(TESTS.parent / "guest_agent").rglob("*.py"), *(TESTS.parent / "nri_plugin").rglob("*.py")]
    assert sources
    imported = re.compile(
        r"hauberk\.policy(\.annotations| import [^\n(]*\bannotations\b| import \([^)]*\bannotations\b)"
    )
    assert imported.search("from hauberk.policy import annotations as a")
    assert not [path for path in sources if imported.search(path.read_text(encoding="utf-8"))]
    assert not [path for path in sources if "kubearmor-policy" in path.read_text(encoding="utf-8")]
    workload = WorkloadIdentity(labels={"kubearmor-policy": "disabled", "app": "web"})
    assert Selector((("app", "web"),)).matches("", workload)
