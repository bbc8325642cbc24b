"""The permission policy: who wins, what a rule matches, which rules are refused."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.permissions import (
    MAX_ALTERNATIVES,
    STARTS_PROGRAMS,
    UNCONFINED,
    UNREADABLE,
    Mode,
    PermissionSettings,
    PromptPermissions,
    Rule,
    check_settings,
)
from punie_protocol.project_settings import (
    CONFIG,
    PYPROJECT,
    ProjectPermissions,
    parse_settings,
    settings_digest,
    settings_files,
)
from punie_protocol.tool_types import Permission
from punie_workers.actions import Subject
from punie_workers.policy import MAX_KEY, Decision, Rights, Verdict, decide, grant_key

ALLOW, DENY, ASK = Verdict.ALLOW, Verdict.DENY, Verdict.ASK

CALLS = {
    Permission.READ: ("read_file", Subject(("src/a.py",))),
    Permission.EDIT: ("edit_file", Subject(("src/a.py",))),
    Permission.EXECUTE: ("run_command", Subject(command=("git", "push"))),
    Permission.NETWORK: ("fetch", Subject()),
}
WHERE = ("nobody", "user", "project")
MODES = (None, *Mode)


def rules(where: str, whose: str, permission: Permission) -> list[Rule]:
    return [Rule(tool=permission)] if where == whose else []


def test_the_whole_matrix() -> None:
    cases = itertools.product(Mode, Permission, WHERE, WHERE, (None, True, False), (True, False))
    for mode, permission, deny, allow, grant, in_prompt in cases:
        tool, subject = CALLS[permission]
        grants = {} if grant is None else {grant_key(permission, tool, subject): grant}
        rights = Rights(
            user=PermissionSettings(
                mode=mode,
                allow=rules(allow, "user", permission),
                deny=rules(deny, "user", permission),
            ),
            project=ProjectPermissions(
                allow=rules(allow, "project", permission),
                deny=rules(deny, "project", permission),
            ),
            prompt=PromptPermissions(allow=[permission] if in_prompt else []),
            grants=grants,
        )
        noes = [deny != "nobody", grant is False, mode == "read-only"]
        ayes = [
            allow != "nobody",
            grant is True,
            in_prompt,
            mode == "trusted",
            mode == "accept-edits" and permission == "edit",
        ]
        if permission == "read":
            expected = "allow"
        else:
            expected = "deny" if any(noes) else "allow" if any(ayes) else "ask"
        found = decide(permission, tool, subject, rights)
        assert found.verdict == expected, (mode, permission, deny, allow, grant, in_prompt, found)
        assert found.reason


@pytest.mark.parametrize("user", Mode)
def test_whose_mode_counts(user: Mode) -> None:
    tool, subject = CALLS[Permission.EXECUTE]
    by_mode = {Mode.READ_ONLY: DENY, Mode.ASK: ASK, Mode.ACCEPT_EDITS: ASK, Mode.TRUSTED: ALLOW}
    for prompt, session, project in itertools.product(MODES, MODES, MODES):
        rights = Rights(
            user=PermissionSettings(mode=user),
            project=ProjectPermissions(mode=project),
            session_mode=session,
            prompt=PromptPermissions(mode=prompt),
        )
        said = [mode for mode in (prompt, session, project, user) if mode is not None]
        assert rights.mode is said[0]
        assert decide(Permission.EXECUTE, tool, subject, rights).verdict is by_mode[said[0]]


NOS = PermissionSettings(mode=Mode.READ_ONLY, deny=[Rule(path="src/**")])
REASONS = [
    (Rights(user=NOS), DENY, "rule deny path=src/** in the user's settings"),
    (Rights(user=PermissionSettings(mode=Mode.READ_ONLY)), DENY, "read-only mode"),
    (
        Rights(
            user=PermissionSettings(mode=Mode.READ_ONLY),
            project=ProjectPermissions(deny=[Rule(tool="edit_file", path="*.py")]),
        ),
        DENY,
        "rule deny tool=edit_file path=*.py in the project's settings",
    ),
    (
        Rights(user=PermissionSettings(mode=Mode.READ_ONLY), grants={"edit": False}),
        DENY,
        "the user rejected it for the rest of the session",
    ),
    (Rights(user=PermissionSettings()), ASK, "mode ask"),
    (Rights(user=PermissionSettings(), session_mode=Mode.TRUSTED), ALLOW, "mode trusted"),
]


@pytest.mark.parametrize(("rights", "verdict", "reason"), REASONS)
def test_the_reason_names_the_first_that_decides(
    rights: Rights, verdict: Verdict, reason: str
) -> None:
    tool, subject = CALLS[Permission.EDIT]
    assert decide(Permission.EDIT, tool, subject, rights) == Decision(verdict, reason)


def forbids(rule: Rule, tool: str, permission: Permission, subject: Subject) -> bool:
    rights = Rights(user=PermissionSettings(mode=Mode.TRUSTED, deny=[rule]))
    return decide(permission, tool, subject, rights).verdict is DENY


def allows(rule: Rule, tool: str, permission: Permission, subject: Subject) -> bool:
    rights = Rights(user=PermissionSettings(mode=Mode.ASK, allow=[rule]))
    return decide(permission, tool, subject, rights).verdict is ALLOW


PATHS = [
    # pattern, paths of the call, an allow rule matches, a deny rule matches
    ("*.py", ("a.py",), True, True),
    ("*.py", ("deep/down/a.py",), True, True),
    ("*.py", ("a.PY",), False, True),
    ("src/**", ("src/a/b.py",), True, True),
    ("./src/**", ("src/a.py",), True, True),
    ("src/**", ("./src/a.py",), True, True),
    ("src/**", ("other//src/a.py",), False, False),
    ("/src/**", ("src/a.py",), True, True),
    ("/a.py", ("a.py",), True, True),
    ("/a.py", ("src/a.py",), False, False),
    ("src/*", ("src/a.py",), True, True),
    ("src/*", ("src/deep/a.py",), False, True),
    ("secrets", ("secrets/key",), False, True),
    ("secrets", ("a/Secrets/b/key",), False, True),
    ("secrets/", ("secrets/key",), True, True),
    ("secrets/", ("a/secrets/b/key",), True, True),
    ("a/secrets/", ("b/a/secrets/key",), False, False),
    ("secrets/", ("secrets.txt",), False, False),
    ("SRC/**", ("src/a.py",), False, True),
    ("caf\u00e9.md", ("cafe\u0301.md",), False, True),
    ("stra\u00dfe/**", ("STRASSE/a",), False, True),
    ("{a,b}.txt", ("b.txt",), True, True),
    ("[!a].txt", ("b.txt",), True, True),
    ("src/**", ("src/a.py", "src/b.py"), True, True),
    ("src/**", ("src/a.py", "docs/b.md"), False, True),
    ("**", ("x",), True, True),
    (".", ("x/y",), True, True),
    ("src/**", (), False, False),
    ("**", (), False, False),
]


@pytest.mark.parametrize(("pattern", "paths", "allowed", "denied"), PATHS)
def test_paths(pattern: str, paths: tuple[str, ...], allowed: bool, denied: bool) -> None:
    rule = Rule(path=pattern)
    check_settings(PermissionSettings(allow=[rule]))
    assert allows(rule, "move_file", Permission.EDIT, Subject(paths)) is allowed
    assert forbids(rule, "move_file", Permission.EDIT, Subject(paths)) is denied


COMMANDS = [
    # prefix, command, an allow rule matches, a deny rule matches
    ("git push", ("git", "push"), True, True),
    ("git push", ("git", "push", "origin"), True, True),
    ("git push", ("git", "pushy"), False, False),
    ("git push", ("git push",), False, True),
    ("git push", ("git",), False, False),
    ("git push", ("/usr/bin/git", "push"), False, True),
    ("/usr/bin/git", ("git", "push"), False, False),
    ("git", ("gitk",), False, False),
    ("git", ("sh", "-c", "git push"), False, True),
    ('echo "a b"', ("echo", "a b", "c"), True, True),
    ('echo "a b"', ("echo", "a", "b"), False, False),
    ("git", (), False, False),
]


@pytest.mark.parametrize(("prefix", "command", "allowed", "denied"), COMMANDS)
def test_commands(prefix: str, command: tuple[str, ...], allowed: bool, denied: bool) -> None:
    rule = Rule(command=prefix)
    check_settings(PermissionSettings(allow=[rule]))
    subject = Subject(command=command)
    assert allows(rule, "run_command", Permission.EXECUTE, subject) is allowed
    assert forbids(rule, "run_command", Permission.EXECUTE, subject) is denied


def test_a_rule_matches_when_all_its_members_do() -> None:
    rule = Rule(tool="edit_file", path="docs/**")
    there, elsewhere = Subject(("docs/a.md",)), Subject(("src/a.py",))
    for matches in (allows, forbids):
        assert matches(rule, "edit_file", Permission.EDIT, there)
        assert not matches(rule, "write_file", Permission.EDIT, there)
        assert not matches(rule, "edit_file", Permission.EDIT, elsewhere)
        assert matches(Rule(tool="edit", path="docs/**"), "write_file", Permission.EDIT, there)
        assert not matches(Rule(tool="execute"), "write_file", Permission.EDIT, there)
        assert not matches(Rule(command="ls"), "write_file", Permission.EDIT, there)


def test_reading_is_never_in_question() -> None:
    rights = Rights(user=PermissionSettings(mode=Mode.READ_ONLY, deny=[Rule(path="**")]))
    for tool in ("read_file", "execute_code"):
        assert decide(Permission.READ, tool, Subject(("a",)), rights).verdict is ALLOW


def test_an_answer_for_the_session_holds_for_what_was_shown() -> None:
    def key(*command: str) -> str:
        return grant_key(Permission.EXECUTE, "run_command", Subject(command=command))

    assert key("git", "push", "origin") == "execute:git push origin"
    assert key("echo", "a b") != key("echo", "a", "b")
    assert key("x" * MAX_KEY) != key("x" * MAX_KEY + "y")
    assert len(key("x" * 10 * MAX_KEY)) < MAX_KEY
    assert key("\udc80" * MAX_KEY)
    assert grant_key(Permission.EXECUTE, "pytest_run", Subject()) == "execute/pytest_run"
    assert grant_key(Permission.EDIT, "move_file", Subject(("a",))) == "edit"
    assert grant_key(Permission.NETWORK, "fetch", Subject()) == "network"


REFUSED = [
    (Rule(), "permissions.deny[1]: an empty rule"),
    (Rule(tool="read"), "permissions.deny[1].tool: 'read' only reads"),
    (Rule(tool="search", path="*"), "permissions.deny[1].tool: 'search' only reads"),
    (Rule(tool="execute_code"), "permissions.deny[1].tool: 'execute_code' only reads"),
    (Rule(tool="edt"), "permissions.deny[1].tool: there is no tool or class 'edt'"),
    (Rule(path="../x"), "permissions.deny[1].path: '../x' leads out"),
    (Rule(path="{a,b}" * 9), "permissions.deny[1].path: "),
    (Rule(command="'"), "permissions.deny[1].command: "),
    (Rule(command=" "), "permissions.deny[1].command: "),
    (Rule(tool="edit", command="ls"), "permissions.deny[1].command: 'edit' runs no command"),
    (Rule(tool="move_file", command="ls"), "permissions.deny[1].command: 'move_file' runs no"),
    (Rule(path="src/**", command="ls"), "permissions.deny[1].path: no call has a path and a"),
    (Rule(tool="execute", path="a"), "permissions.deny[1].path: 'execute' edits no file"),
    (Rule(tool="network", path="a"), "permissions.deny[1].path: 'network' edits no file"),
]


@pytest.mark.parametrize(("rule", "message"), REFUSED)
def test_a_rule_that_can_do_nothing_is_refused(rule: Rule, message: str) -> None:
    with pytest.raises(PunieError) as caught:
        check_settings(PermissionSettings(deny=[Rule(tool="edit"), rule]))
    assert isinstance(caught.value.error, InvalidRequest)
    assert caught.value.error.message.startswith(message)
    assert caught.value.error.hint


GLOBS = st.text(alphabet="ab/.*?[]!{},\\-ßİ", min_size=1, max_size=30)
SOME_PATHS = st.lists(st.text(alphabet="abAB/.{}ß", min_size=1, max_size=12), max_size=3)
SOME_RULES = st.builds(
    Rule, tool=st.sampled_from([None, "edit", "edit_file"]), path=st.none() | GLOBS
) | st.builds(
    Rule,
    tool=st.sampled_from([None, "execute"]),
    command=st.none() | st.sampled_from(["git", "git push", "ls"]),
)
SUBJECTS = st.builds(
    Subject,
    paths=SOME_PATHS.map(tuple),
    command=st.sampled_from([(), ("git", "push"), ("/bin/ls",)]),
)
RANK = {ALLOW: 0, ASK: 1, DENY: 2}


def accepted(*some: Rule) -> bool:
    try:
        check_settings(PermissionSettings(deny=list(some)))
    except PunieError:
        return False
    return True


@given(
    st.lists(SOME_RULES, max_size=3),
    st.lists(SOME_RULES, max_size=3),
    SOME_RULES,
    SUBJECTS,
    st.sampled_from(Mode),
    st.sampled_from([Permission.EDIT, Permission.EXECUTE]),
)
def test_a_rule_more(
    allow: list[Rule],
    deny: list[Rule],
    more: Rule,
    subject: Subject,
    mode: Mode,
    permission: Permission,
) -> None:
    assume(accepted(more, *allow, *deny))

    def verdict(user: PermissionSettings, project: ProjectPermissions) -> Verdict:
        return decide(permission, "edit_file", subject, Rights(user=user, project=project)).verdict

    user = PermissionSettings(mode=mode, allow=allow, deny=deny)
    nothing = ProjectPermissions()
    before = verdict(user, nothing)
    forbidden = verdict(user, ProjectPermissions(deny=[more]))
    permitted = verdict(user, ProjectPermissions(allow=[more]))
    assert RANK[forbidden] >= RANK[before]
    assert RANK[permitted] <= RANK[before]
    assert (before is DENY) == (permitted is DENY)
    if permitted is ALLOW and before is not ALLOW:
        assert forbidden is DENY, "what a rule would allow, it forbids as well"


@given(GLOBS)
def test_a_pattern_that_is_accepted_can_be_used(pattern: str) -> None:
    rule = Rule(path=pattern)
    assume(accepted(rule))
    forbids(rule, "edit_file", Permission.EDIT, Subject(("a/b",)))


@given(st.integers(1, 20), st.integers(1, 20))
def test_alternatives_are_counted(one: int, other: int) -> None:
    pattern = "{" + ",".join("a" * one) + "}{" + ",".join("b" * other) + "}"
    assert accepted(Rule(path=pattern)) == (one * other <= MAX_ALTERNATIVES)


RULES_TOML = b'[permissions]\nmode = "trusted"\nallow = [{tool = "edit", path = "src/**"}]\n'


def test_the_projects_files_together() -> None:
    pyproject = (
        b'[tool.punie]\ninstructions = "two"\n[tool.punie.permissions]\nmode = "ask"\n'
        b'deny = [{path = "*.lock"}]\n'
    )
    config = parse_settings({PYPROJECT: pyproject, CONFIG: b'instructions="one"\n' + RULES_TOML})
    assert config.instructions == "one\n\ntwo"
    assert config.permissions == ProjectPermissions(
        mode=Mode.TRUSTED,
        allow=[Rule(tool="edit", path="src/**")],
        deny=[Rule(path="*.lock")],
    )


NOTHING = [
    {},
    {PYPROJECT: b'[project]\nname = "x"\n'},
    {PYPROJECT: b'[project]\ndependencies = ["punie"]\n'},
    {PYPROJECT: b"[tool.punie]\n"},
    {PYPROJECT: b"[broken\n"},
    {CONFIG: b""},
    {CONFIG: b"# only a remark\n"},
    {"AGENTS.md": b"punie"},
]


@pytest.mark.parametrize("files", NOTHING)
def test_files_without_settings_need_no_trust(files: dict[str, bytes]) -> None:
    assert settings_digest(files) == ""
    assert settings_files(files) == {}
    assert parse_settings(files).permissions == ProjectPermissions()


FAULTS = [
    (CONFIG, b"model = 1", "unknown field `model`"),
    (CONFIG, b"[permissions]\nwait_s = 1", "unknown field `wait_s` - at `$.permissions`"),
    (CONFIG, b'[permissions]\nmode = "free"', "'free' - at `$.permissions.mode`"),
    (CONFIG, b'permissions.allow = [{tool = "git"}]', "permissions.allow[0].tool: there is no"),
    (CONFIG, b'permissions.deny = [{tool = "search"}]', "permissions.deny[0].tool: 'search' only"),
    (CONFIG, b'instructions = "' + b"x" * 16_385 + b'"', "- at `$.instructions`"),
    (CONFIG, b"x = ", "Invalid value"),
    (CONFIG, b"\xff", "can't decode"),
    (CONFIG, b"x = " + b"[" * 100_000, "too deeply nested"),
    (PYPROJECT, b"[tool.punie]\nmodel = 1", "[tool.punie]: Object contains unknown field `model`"),
    (PYPROJECT, b"[tool]\npunie = 1", "`$.tool.punie`"),
    (PYPROJECT, b"[tool.punie", "Expected"),
]


@pytest.mark.parametrize(("name", "data", "text"), FAULTS)
def test_faulty_settings_name_file_and_key(name: str, data: bytes, text: str) -> None:
    with pytest.raises(PunieError) as caught:
        parse_settings({name: data})
    assert isinstance(caught.value.error, InvalidRequest)
    assert caught.value.error.message.startswith(f"{name}: ")
    assert text in caught.value.error.message
    assert settings_digest({name: data}), "nobody trusts it unseen"


@given(st.integers(0, len(RULES_TOML) - 1), st.integers(0, 255))
def test_any_changed_byte_is_another_digest(at: int, byte: int) -> None:
    assume(RULES_TOML[at] != byte)
    changed = RULES_TOML[:at] + bytes([byte]) + RULES_TOML[at + 1 :]
    assert settings_digest({CONFIG: changed}) not in (settings_digest({CONFIG: RULES_TOML}), "")


def test_a_digest_is_of_names_and_contents() -> None:
    table = b'[tool.punie]\ninstructions = "x"\n'
    digests = [
        settings_digest({CONFIG: table}),
        settings_digest({PYPROJECT: table}),
        settings_digest({PYPROJECT: table, CONFIG: table}),
        settings_digest({PYPROJECT: table + b"\n", CONFIG: table}),
    ]
    assert len(set(digests)) == len(digests)
    assert settings_digest({PYPROJECT: table, "AGENTS.md": b"x"}) == digests[1]


STARTER = Subject((".vscode/tasks.json",))


def verdict(subject: Subject, **rights: object) -> Verdict:
    given = {"user": PermissionSettings()} | rights
    return decide(Permission.EDIT, "write_file", subject, Rights(**given)).verdict  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("path", [".vscode/tasks.json", "sub/.ENVRC", ".idea", "a/.Husky/pre-push"])
def test_files_that_start_programs_are_no_ordinary_edits(path: str) -> None:
    subject = Subject(("src/a.py", path))
    edits = PromptPermissions(allow=[Permission.EDIT])
    everywhere = PermissionSettings(allow=[Rule(tool="edit"), Rule(path="**")])
    assert verdict(subject, prompt=PromptPermissions(mode=Mode.ACCEPT_EDITS)) is ASK
    assert verdict(subject, prompt=edits) is ASK
    assert verdict(subject, user=everywhere) is ASK
    assert verdict(subject, grants={"edit": True}) is ASK
    assert verdict(subject, grants={"edit": False}) is DENY
    assert verdict(subject, prompt=PromptPermissions(mode=Mode.TRUSTED)) is ALLOW
    assert verdict(Subject(("src/vscode.py",)), prompt=edits) is ALLOW


def test_an_answer_about_a_file_that_starts_programs_is_about_that_file() -> None:
    grants = {grant_key(Permission.EDIT, "write_file", STARTER): True}
    assert verdict(STARTER, grants=grants) is ALLOW
    assert verdict(Subject((".vscode/launch.json",)), grants=grants) is ASK
    assert verdict(Subject(("src/a.py",)), grants=grants) is ASK


def test_a_rule_that_names_what_starts_programs_allows_it() -> None:
    named = PermissionSettings(allow=[Rule(path=".vscode/settings.json")])
    assert verdict(Subject((".vscode/settings.json",)), user=named) is ALLOW
    assert verdict(STARTER, user=named) is ASK


OBSCURE = Subject(command=("sh", "-c", "$x"))
UNCONFINED_CALL = Subject(command=("make",), confined=False)


@pytest.mark.parametrize(
    ("permission", "subject", "why"),
    [
        (Permission.EXECUTE, OBSCURE, UNREADABLE),
        (Permission.EXECUTE, UNCONFINED_CALL, UNCONFINED),
        (Permission.EDIT, STARTER, STARTS_PROGRAMS),
        (Permission.EDIT, Subject(("a.py",)), ""),
        (Permission.EXECUTE, Subject(command=("make",)), ""),
    ],
)
def test_why_it_is_asked_although_its_class_is_allowed(
    permission: Permission, subject: Subject, why: str
) -> None:
    user = PermissionSettings(deny=[Rule(command="git push")])
    asked = decide(permission, "it", subject, Rights(user=user))
    assert asked == Decision(ASK, why or "mode ask")
    reads = Rights(user=user, prompt=PromptPermissions(mode=Mode.READ_ONLY))
    refused = decide(permission, "it", subject, reads)
    assert refused == Decision(DENY, f"read-only mode; {why}" if why else "read-only mode")
