"""Permissions of what runs: shell texts, the network, no sandbox, tests in a read-only mode."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from punie_protocol.permissions import (
    Mode,
    PermissionSettings,
    PromptPermissions,
    Rule,
    check_settings,
)
from punie_protocol.project_settings import ProjectPermissions
from punie_protocol.tool_types import Permission
from punie_workers.actions import Subject
from punie_workers.command_rules import SHELL, begins, is_opaque, occurs
from punie_workers.policy import Rights, Verdict, decide, grant_key

ALLOW, DENY, ASK = Verdict.ALLOW, Verdict.DENY, Verdict.ASK
EXECUTE, NETWORK = Permission.EXECUTE, Permission.NETWORK


def sh(text: str) -> tuple[str, ...]:
    return (*SHELL, text)


READ = [
    # rule, command, allowed by it, forbidden by it
    ("git push", sh("git push"), True, True),
    ("git push", sh("git push origin main"), True, True),
    ("git push", sh("git pushy"), False, False),
    ("git", sh("gitk --all"), False, False),
    ("git push", sh("cd x && git push"), False, True),
    ("git push", sh("true; git push"), False, True),
    ("git push", sh("true\ngit push"), False, True),
    ("git push", sh("true|git push"), False, True),
    ("git push", sh("(git push)"), False, True),
    ("git push", sh("{ git push; }"), False, True),
    ("git push", sh("echo $(git push)"), False, True),
    ("git push", sh('echo "$(git push)"'), False, True),
    ("git push", sh("echo `git push`"), False, True),
    ("git push", sh("A=1 git push"), False, True),
    ("git push", sh("g''it pu\"s\"h"), False, True),
    ("git push", sh("g\\it push"), False, True),
    ("git push", sh("git${IFS}push"), False, True),
    ("git push", sh("git$IFS push"), False, True),
    ("git push", sh("{git,push}"), False, True),
    ("git push", sh("sh -c 'git push'"), False, True),
    ("git push", sh("sh -c \"sh -c 'git push'\""), False, True),
    ("git push", sh("eval 'git push'"), False, True),
    ("git push", sh("git \\\n push"), False, True),
    ("git push", sh("git push # ' an open quote"), False, True),
    ("git push", sh("echo 'open; git push"), False, True),
    ("git push", sh("exec /usr/bin/git push"), False, True),
    ("git push", sh("git -C sub push"), False, True),
    ("git push", sh("git commit -m push"), False, False),
    ("git push", sh("git log; ls push"), False, False),
    ("git push", ("env", "A=1", "git", "push"), False, True),
    ("git push", ("timeout", "5", "git", "push"), False, True),
    ("git push", ("xargs", "-n1", "git", "push"), False, True),
    ("git push", ("bash", "-lc", "git push"), False, True),
    ("git push", ("busybox", "sh", "-c", "git push"), False, True),
    ("git push", ("git", "-c", "a=b", "--no-pager", "push"), False, True),
    ("git push", ("git", "stash", "push"), False, False),
    ("rm", sh("rm -rf build"), True, True),
    ("rm", sh("rm -rf $HOME"), False, True),
    ("rm", sh("rm -rf ~"), False, True),
    ("rm", sh("rm *"), False, True),
    ("rm", sh("format it"), False, False),
    ("make", sh("PATH=. make"), False, True),
    ("PATH=.", sh("PATH=. make"), False, True),
    ("/bin/sh -c", sh("rm -rf /"), True, True),
    ("pytest", ("/p/.venv/bin/python", "-m", "pytest", "./."), False, True),
]


@pytest.mark.parametrize(("rule", "command", "allowed", "forbidden"), READ)
def test_how_a_command_is_read(
    rule: str, command: tuple[str, ...], allowed: bool, forbidden: bool
) -> None:
    assert (begins(rule, command), occurs(rule, command)) == (allowed, forbidden)


TEXTS = st.text(alphabet="git push;&|()$`'\"\\\n{},-<>", max_size=40)


@given(TEXTS)
def test_what_a_rule_allows_it_forbids_as_well(text: str) -> None:
    command = sh(text)
    assert occurs("git push", command) or not begins("git push", command)


@given(TEXTS, st.sampled_from([";", "&&", "|", "\n", "&", "||"]))
def test_more_text_hides_nothing(text: str, separator: str) -> None:
    assume(not f"{text}{separator}".endswith("\\\n"))  # to a shell that is no separator
    assert occurs("git push", sh(f"{text}{separator}git push{separator}{text}"))


@pytest.mark.parametrize(
    ("command", "opaque"),
    [
        (sh("make test"), False),
        (sh("make a && make b; make c > log 2>&1"), False),
        (sh("x=push; git $x"), True),
        (sh("git `echo push`"), True),
        (sh("/usr/bin/gi? push"), True),
        (sh(". ./script"), True),
        (sh("eval x"), True),
        (("bash", "-c", "$X"), True),
        (("grep", "a*b$", "src"), False),
        (("ls", "-l"), False),
    ],
)
def test_what_only_a_shell_can_read(command: tuple[str, ...], opaque: bool) -> None:
    assert is_opaque(command) is opaque


def test_what_cannot_be_read_is_not_let_through_while_a_rule_forbids_commands() -> None:
    subject = Subject(command=sh("git $x"))
    key = grant_key(EXECUTE, "run_command", subject)
    cases = [
        ([], {}, ALLOW),
        ([Rule(command="git push")], {}, ASK),
        ([Rule(command="git push")], {key: True}, ALLOW),
        ([Rule(tool="pytest_run", command="x")], {}, ALLOW),
        ([Rule(tool="edit")], {}, ALLOW),
    ]
    for deny, grants, expected in cases:
        rights = Rights(user=PermissionSettings(mode=Mode.TRUSTED, deny=deny), grants=grants)
        assert decide(EXECUTE, "run_command", subject, rights).verdict is expected, deny


COMMAND = ("npm", "install")
PLAIN = Subject(command=COMMAND)
ONLINE = Subject(command=COMMAND, network=True)
BARE = Subject(command=COMMAND, network=True, confined=False)


def verdict(subject: Subject, rights: Rights, tool: str = "run_command") -> Verdict:
    return decide(EXECUTE, tool, subject, rights).verdict


def test_the_network_is_a_permission_of_its_own() -> None:
    """Each of the two classes may be allowed, denied or neither, by a rule or by the prompt; the
    mode decides what nobody did."""
    said = ("rule", "prompt", "deny", "nobody")
    for mode, execute, network in itertools.product(Mode, said, said):
        answers = {EXECUTE: execute, NETWORK: network}
        rights = Rights(
            user=PermissionSettings(
                mode=mode,
                allow=[Rule(tool=one) for one, what in answers.items() if what == "rule"],
                deny=[Rule(tool=one) for one, what in answers.items() if what == "deny"],
            ),
            prompt=PromptPermissions(allow=[o for o, what in answers.items() if what == "prompt"]),
        )
        if "deny" in answers.values() or mode is Mode.READ_ONLY:
            expected = DENY
        elif mode is Mode.TRUSTED or "nobody" not in answers.values():
            expected = ALLOW
        else:
            expected = ASK
        assert verdict(ONLINE, rights) is expected, (mode, execute, network)
        alone = {"deny": DENY, "nobody": ALLOW if mode is Mode.TRUSTED else ASK}.get(execute, ALLOW)
        assert verdict(PLAIN, rights) is (DENY if mode is Mode.READ_ONLY else alone)


@pytest.mark.parametrize(
    ("rule", "online"),
    [
        (Rule(command="npm install"), ASK),
        (Rule(tool="run_command"), ASK),
        (Rule(tool="execute", command="npm"), ASK),
    ],
)
def test_what_allows_commands_does_not_allow_the_network(rule: Rule, online: Verdict) -> None:
    rights = Rights(user=PermissionSettings(allow=[rule]))
    assert (verdict(PLAIN, rights), verdict(ONLINE, rights)) == (ALLOW, online)


def test_the_network_may_be_allowed_for_one_command() -> None:
    allow = [Rule(tool="execute"), Rule(tool="network", command="npm install")]
    check_settings(PermissionSettings(allow=allow))
    rights = Rights(user=PermissionSettings(allow=allow))
    assert verdict(ONLINE, rights) is ALLOW
    other = Subject(command=("npm", "publish"), network=True)
    assert verdict(other, rights) is ASK


def test_answers_for_the_session_are_told_apart() -> None:
    subjects = [
        PLAIN,
        ONLINE,
        BARE,
        Subject(command=COMMAND, folder="sub"),
        Subject(command=("(cd", "sub)", *COMMAND)),
        Subject(command=sh("npm install")),
        Subject(command=COMMAND, any_arguments=True),
    ]
    keys = [grant_key(EXECUTE, "run_command", subject) for subject in subjects]
    assert len(set(keys)) == len(keys)
    for given_to, key in zip(subjects, keys, strict=True):
        yes = Rights(user=PermissionSettings(), grants={key: True})
        allowed = [subject for subject in subjects if verdict(subject, yes) is ALLOW]
        assert allowed == [given_to]


def test_a_rejected_command_is_rejected_with_the_network_too() -> None:
    no = Rights(user=PermissionSettings(), grants={"execute:npm install": False})
    assert [verdict(one, no) for one in (PLAIN, ONLINE, BARE)] == [DENY, DENY, DENY]
    online = grant_key(EXECUTE, "run_command", ONLINE)
    no = Rights(user=PermissionSettings(), grants={online: False})
    assert [verdict(one, no) for one in (PLAIN, ONLINE)] == [ASK, DENY]


def test_without_a_sandbox_only_an_answer_or_full_trust_allows() -> None:
    everything = [Rule(tool="execute"), Rule(tool="network"), Rule(tool="run_command")]
    for mode in Mode:
        rights = Rights(
            user=PermissionSettings(mode=mode, allow=everything),
            project=ProjectPermissions(allow=everything),
            prompt=PromptPermissions(allow=[EXECUTE, NETWORK]),
        )
        by_mode = {Mode.READ_ONLY: DENY, Mode.TRUSTED: ALLOW}
        assert verdict(BARE, rights) is by_mode.get(mode, ASK), mode
    forbidden = Rights(
        user=PermissionSettings(mode=Mode.TRUSTED, deny=[Rule(tool="network")]),
    )
    assert verdict(BARE, forbidden) is DENY, "without a sandbox nothing keeps it off the network"


TESTS = Subject(command=("python3", "-m", "pytest"), any_arguments=True)
HARMLESS = Subject(command=TESTS.command, any_arguments=True, harmless=True)


@pytest.mark.parametrize(
    ("subject", "deny", "expected"),
    [
        (TESTS, [], DENY),
        (HARMLESS, [], ALLOW),
        (Subject(command=TESTS.command, harmless=True, network=True, confined=False), [], DENY),
        (HARMLESS, [Rule(tool="pytest_run")], DENY),
        (HARMLESS, [Rule(tool="execute")], DENY),
        (HARMLESS, [Rule(command="pytest")], DENY),
    ],
)
def test_tests_in_a_read_only_mode(subject: Subject, deny: list[Rule], expected: Verdict) -> None:
    rights = Rights(user=PermissionSettings(mode=Mode.READ_ONLY, deny=deny))
    assert verdict(subject, rights, "pytest_run") is expected


def test_harmless_tests_are_asked_for_like_others_elsewhere() -> None:
    for mode, expected in ((Mode.ASK, ASK), (Mode.ACCEPT_EDITS, ASK), (Mode.TRUSTED, ALLOW)):
        rights = Rights(user=PermissionSettings(mode=mode))
        assert verdict(HARMLESS, rights, "pytest_run") is expected


def test_looking_after_a_job_needs_no_question() -> None:
    job = Subject(settled=True)
    for mode in Mode:
        assert verdict(job, Rights(user=PermissionSettings(mode=mode))) is ALLOW
    forbidden = Rights(user=PermissionSettings(deny=[Rule(tool="run_command")]))
    assert verdict(job, forbidden) is DENY


def test_a_long_command_is_read_in_one_pass() -> None:
    """Else a model could hold up all sessions with one that a rule almost meets."""
    text = "git -x push -y " * 2000
    meant = "git -x push --force origin main"
    for command, forbidden in ((text, False), (text + meant, True)):
        for words in ((*SHELL, command), tuple(command.split())):
            assert occurs("git push origin main", words) is forbidden
