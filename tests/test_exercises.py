"""Exercises judge: right answers in any form, planted mistakes, stubs, crashes."""

import io
import linecache
import random
import re
import warnings
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tlcourse.exercises import (
    EXERCISES,
    attention,
    check,
    distillation,
    exercise,
    find,
    hint,
    lwf,
    solution,
)
from tlcourse.exercises._box import source
from tlcourse.exercises._exercise import SIZES, value, verdict
from tlcourse.exercises._exercise import _undone as undone
from tlcourse.methods.attention import attention_transfer_loss
from tlcourse.methods.saliency import grad_cam

PLANTED = [
    (name, diagnosis, wrong) for name, e in EXERCISES.items() for diagnosis, wrong in e.mistakes
]


@pytest.fixture(params=EXERCISES)
def name(request):
    return request.param


def said(name, answer):
    return verdict(EXERCISES[name], answer)


def test_the_reference_is_right(name):
    assert said(name, EXERCISES[name].reference) == "Right."


@pytest.mark.parametrize(
    ("name", "diagnosis", "wrong"),
    PLANTED,
    ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(PLANTED)],
)
def test_every_planted_mistake_gets_its_own_diagnosis(name, diagnosis, wrong):
    assert said(name, wrong) == f"Not yet: {diagnosis}"


def test_the_same_diagnosis_is_not_given_to_two_different_mistakes():
    shared = {
        text
        for name in EXERCISES
        for text in [d for d, _ in EXERCISES[name].mistakes]
        if [d for d, _ in EXERCISES[name].mistakes].count(text) > 1
    }
    assert shared == {
        "the teacher gets a gradient; it must not learn from its student. Detach its logits."
    }  # CE and KL alike


def stub(**arguments): ...


def unwritten(**arguments):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., stub, unwritten, lambda **arguments: ...])
def test_a_stub_is_not_attempted_yet(name, answer):
    assert said(name, answer).startswith("Not attempted yet")


def test_what_is_not_a_function(name):
    assert (
        said(name, torch.ones(3)) == "Give the function itself: check(name, function), got Tensor."
    )


# right answers written differently


def with_log_sum_exp(logits, T):
    z = logits / T
    return (z - z.logsumexp(1, keepdim=True)).exp()


def in_numpy(logits, T):
    e = (logits.numpy() - logits.numpy().max(1, keepdims=True)) / T
    e = 2.718281828459045**e
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "answer", [with_log_sum_exp, in_numpy, lambda logits, T: F.softmax(logits.double() / T, -1)]
)
def test_soften_written_differently_is_right(answer):
    assert said("soften", answer) == "Right."


def with_kl(student_logits, teacher_logits, labels, T, alpha):
    soft = F.kl_div(
        F.log_softmax(student_logits / T, 1),
        F.softmax(teacher_logits / T, 1).detach(),
        reduction="batchmean",
    )
    return alpha * T * T * soft + (1 - alpha) * F.cross_entropy(student_logits, labels)


def with_einsum(student_logits, teacher_logits, labels, T, alpha):
    with torch.no_grad():
        p = (teacher_logits / T - (teacher_logits / T).logsumexp(1, keepdim=True)).exp()
    log_q = student_logits / T - (student_logits / T).logsumexp(1, keepdim=True)
    hard = -(student_logits.log_softmax(1)[range(len(labels)), labels]).mean()
    return (1 - alpha) * hard - alpha * T**2 * torch.einsum("nk,nk->", p, log_q) / len(labels)


@pytest.mark.parametrize("name", ["loss", "find_the_bug"])
@pytest.mark.parametrize("answer", [with_kl, with_einsum])
def test_a_loss_written_differently_is_right(name, answer):
    assert said(name, answer) == "Right."


def test_a_gradient_by_autograd_is_right_too():
    def answer(z, v, T):
        leaf = z.clone().requires_grad_()
        F.cross_entropy(leaf / T, (v / T).softmax(1), reduction="sum").backward()
        return leaf.grad

    assert said("gradient", answer) == "Right."


def test_the_solutions_of_attention_are_what_the_package_computes():
    student, teacher = (
        [torch.randn(4, c, side, side) for c, side in sizes]
        for sizes in (((2, 6), (3, 4)), ((5, 6), (3, 4)))
    )
    expected = {
        form: attention_transfer_loss(student, teacher, beta=3.0, p=2, form=form)
        for form in ("paper", "code")
    }
    torch.testing.assert_close(
        attention.loss_of_the_paper(student, teacher, 3.0, 2), expected["paper"]
    )
    torch.testing.assert_close(attention.repaired_loss(student, teacher, 3.0), expected["code"])
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    network, asked = nn.Sequential(nn.Identity(), *head), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(
        attention.cam_of_head(student[0], head, asked), grad_cam(network, "0", student[0], asked)
    )


def test_the_unrepaired_loss_is_zero_of_any_logits():
    as_found = EXERCISES["find_the_bug_attention"].mistakes[0][1]
    assert as_found(torch.randn(8, 10), torch.randn(8, 10), 1000.0) == 0


def by_channel_means(student, teacher, beta, p):
    """As the official code makes its maps: by means, where equal maps differ by rounding."""
    rows = [
        [F.normalize(A.abs().pow(p).mean(1).flatten(1)) for A in pair]
        for pair in zip(student, [t.detach() for t in teacher])
    ]
    return beta / 2 * sum(F.pairwise_distance(*pair).mean() for pair in rows)


def in_double(student, teacher, beta, p):
    return attention.loss_of_the_paper(
        [s.double() for s in student], [t.double() for t in teacher], beta, p
    )


def repaired_by_an_einsum(student, teacher, beta):
    q = [
        [F.normalize(torch.einsum("nchw,nchw->nhw", A, A).flatten(1)) for A in side]
        for side in (student, [t.detach() for t in teacher])
    ]
    return beta * sum(F.mse_loss(a, b) for a, b in zip(*q))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("attention_loss", by_channel_means),
        ("attention_loss", in_double),
        ("find_the_bug_attention", repaired_by_an_einsum),
    ],
)
def test_an_attention_loss_written_differently_is_right(name, answer):
    assert said(name, answer) == "Right."


def test_to_return_nothing_for_logits_is_no_refusal():
    def answer(student, teacher, beta):
        return attention.repaired_loss(student, teacher, beta) if student[0].ndim == 4 else None

    assert "logits still pass" in said("find_the_bug_attention", answer)


@pytest.mark.parametrize("made", [lambda z: z.bfloat16() + 1, lambda z: exit()])
def test_odd_answers_get_a_verdict(made):
    assert said("guided_relu", lambda x, gradient: made(x)).startswith(
        ("Not yet", "Your code stopped")
    )


def test_forgetting_as_the_chapter_defines_it_is_right():
    def answer(R):
        last = len(R) - 1
        return np.mean(
            [R[j:last, j].max() - R[last, j] for j in range(last)]
        )  # from the row in which a task was learnt

    assert said("forgetting", answer) == "Right."


@pytest.mark.parametrize("name", ["attention_loss", "find_the_bug_attention"])
@pytest.mark.parametrize(
    "answer", [lambda **a: 3.0, lambda **a: a["student"][0], lambda **a: torch.tensor(1.0)]
)
def test_an_attention_loss_that_cannot_train_says_so(name, answer):
    wanted = "the loss must be one number, a tensor of no dimensions that is computed from student"
    assert said(name, answer) == f"Not yet: TypeError: {wanted}"


def test_lists_of_tensors_are_told_by_their_shapes():
    text = said(
        "attention_loss",
        lambda student, teacher, beta, p: (
            2 * attention.loss_of_the_paper(student, teacher, beta, p + 1)
        ),
    )
    assert text.startswith(
        "Not yet. For student = [numbers of shape (1, 2, 3, 3), [[[[ 0.393 1.132] [-0.54 -2.21 ]]"
    )


def test_lists_that_the_answer_shortens_were_changed():
    exercise = replace(EXERCISES["attention_loss"], see=value)

    def answer(student, teacher, beta, p):
        loss = attention.loss_of_the_paper(student, teacher, beta, p)
        student.pop()
        return loss

    assert (
        verdict(exercise, answer) == "Not yet: the function changes its arguments; work on copies."
    )


# wrong in ways nobody planted


def test_the_smallest_input_that_differs_is_shown():
    text = said(
        "soften", lambda logits, T: (logits / T).softmax(1) * (0.5 if len(logits) > 1 else 1)
    )
    assert text.startswith("Not yet. For logits = [[")
    assert "T = 0.5" in text
    _, expected, got = text.split("\n")
    assert expected.startswith("  expected [[")
    assert got.startswith("  got      [[")
    assert text.count("],") + text.count("] [") <= 4  # two rows each


@pytest.mark.parametrize(
    "answer",
    [lambda logits, T: logits.softmax(1)[:, :1], lambda logits, T: "seven", lambda logits, T: 3.0],
)
def test_another_shape_or_kind_is_wrong_not_a_crash(answer):
    assert said("soften", answer).startswith("Not yet. For logits")


def test_changing_the_arguments_is_found():
    def answer(logits, T):
        logits /= T
        return logits.softmax(1)

    assert said("soften", answer) == "Not yet: the function changes its arguments; work on copies."


def test_a_loss_that_cannot_train_says_so():
    wanted = "the loss must be one number, a tensor of no dimensions that is computed from "
    wanted += "student_logits"
    for answer in (lambda **a: 3.0, lambda **a: a["student_logits"], lambda **a: torch.tensor(1.0)):
        assert said("loss", answer) == f"Not yet: TypeError: {wanted}"


def test_a_crash_names_the_line():
    code = "def answer(logits, T):\n    half = logits / 2\n    return half.sofmax(1)\n"
    linecache.cache["<cell>"] = (len(code), None, code.splitlines(True), "<cell>")
    space = {}
    exec(compile(code, "<cell>", "exec"), space)
    stopped = "Your code stopped at line 3 of its cell, `return half.sofmax(1)`"
    error = "AttributeError: 'Tensor' object has no attribute 'sofmax'"
    assert said("soften", space["answer"]) == f"{stopped}\n  {error}"


def test_arguments_of_other_names_say_so():
    assert "unexpected keyword argument" in said("soften", lambda z, T: z)


# answers that do odd things


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Odd:
    """Raises whatever one does with it."""

    def __repr__(self, *_, **__):
        raise SystemExit

    __str__ = __len__ = __array__ = __float__ = __eq__ = __hash__ = __deepcopy__ = __repr__


class OddMock:
    """Has whatever one asks for, wrapped without end."""

    def __call__(self, **arguments):
        raise BadText

    def __getattr__(self, name):
        return OddMock()


def throws(error):
    def answer(**arguments):
        raise error

    return answer


def recurses(**arguments):
    return recurses(**arguments)


def holds_itself(**arguments):
    found = []
    found.append(found)
    return found


def nested(depth):
    found = 1.0
    for _ in range(depth):
        found = [found]
    return found


async def waits(**arguments):
    return 1


def yields(**arguments):
    yield 1


RAISED = {
    "a text that raises": throws(BadText()),
    "not implemented, and a text that raises": throws(NotImplementedError(BadText())),
    "a text of lone surrogates": throws(ValueError("\ud800")),
    "a very long text": throws(ValueError("x" * 10**6)),
    "sys.exit": throws(SystemExit(3)),
    "a generator's exit": throws(GeneratorExit()),
    "an error of its own kind": throws(type("Own", (BaseException,), {})()),
    "a group of errors": throws(ExceptionGroup("many", [ValueError("one"), BadText()])),
    "without end": recurses,
    "out of memory": lambda **arguments: torch.empty(10**15),
    "a callable with every attribute": OddMock(),
}
RETURNED = {
    "nothing can be done with it": lambda **a: Odd(),
    "a list of such": lambda **a: [Odd(), {"a": Odd()}],
    "a list that holds itself": holds_itself,
    "a deep list": lambda **a: nested(10**4),
    "a long list": lambda **a: [1.5] * 10**5,
    "a long text": lambda **a: "x" * 10**6,
    "a long whole number": lambda **a: 10**5000,
    "lone surrogates": lambda **a: "\ud800",
    "a large array": lambda **a: np.zeros(10**6),
    "an array of objects": lambda **a: np.array([None, Odd()], dtype=object),
    "a large dictionary": lambda **a: dict.fromkeys(range(10**5), torch.ones(3)),
    "a module": lambda **a: nn.Linear(3, 4),
    "a generator": yields,
    "a coroutine": waits,
    "a class": lambda **a: Odd,
    "a meta tensor": lambda **a: torch.empty(2, 3, device="meta"),
    "a small meta tensor": lambda **a: torch.empty((), device="meta"),
    "a sparse tensor": lambda **a: torch.eye(3).to_sparse(),
    "a sparse row tensor": lambda **a: torch.eye(3).to_sparse_csr(),
    "a nested tensor": lambda **a: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "a quantized tensor": lambda **a: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8),
    "a complex tensor": lambda **a: torch.eye(3) * 1j,
    "a conjugate view": lambda **a: (torch.eye(3) * 1j).conj(),
    "a tensor of eight bits": lambda **a: torch.eye(3).to(torch.float8_e4m3fn),
    "a masked array": lambda **a: np.ma.masked_array([1.0, 2.0], [True, False]),
    "a tensor of 1e9 numbers": lambda **a: torch.zeros(1).expand(10**9),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exercise", ["soften", "loss", "find_the_bug_lwf"])
@pytest.mark.parametrize("kind", [*RAISED, *RETURNED])
def test_whatever_an_answer_does_gets_a_short_verdict(kind, exercise, capsys):
    check(exercise, (RAISED | RETURNED)[kind])
    text, errors = capsys.readouterr()
    assert text.startswith(("Not yet", "Your code stopped", "Not attempted yet"))
    assert len(text) < 5_000
    assert errors == ""


@pytest.mark.parametrize("kind", RETURNED)
def test_a_verdict_names_no_place_in_memory(kind):
    assert " at 0x" not in said("guided_relu", RETURNED[kind])


def test_ctrl_c_stops_a_check():
    with pytest.raises(KeyboardInterrupt):
        check("soften", throws(KeyboardInterrupt()))


def test_a_complex_number_with_the_right_real_part_is_not_right():
    assert "Right" not in said("soften", lambda logits, T: (logits / T).softmax(1) + 1j)


def test_what_a_terminal_has_no_letter_for_is_printed_all_the_same(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", out)
    check("old_loss", lambda logits, recorded, T: throws(ValueError("ŷ → Σ"))())
    out.flush()
    assert b"\\u0177 \\u2192 \\u03a3" in out.buffer.getvalue()


def seeds():
    return [torch.rand(1).item(), np.random.rand(), random.random()]


def reseeds(logits, T):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    seeds()
    return (logits / T).softmax(1)


CHANGED = {
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "default type": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "NumPy's errors": (lambda: np.seterr(all="raise"), np.geterr),
    "warnings": (lambda: warnings.simplefilter("error"), lambda: warnings.filters[0]),
}


def test_seeds_are_left_as_they_were():
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert said("soften", reseeds) == "Right."
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


@pytest.mark.parametrize("what", CHANGED)
@pytest.mark.parametrize("then", ["returns", "raises"])
def test_settings_are_left_as_they_were(what, then):
    change, setting = CHANGED[what]
    before = setting()

    def answer(logits, T):
        change()
        return (logits / T).softmax(1) if then == "returns" else exit()

    verdict_ = said("soften", answer)
    assert setting() == before
    assert verdict_ == "Right." or then == "raises"


@pytest.mark.parametrize("what", CHANGED)
def test_the_learners_settings_change_no_verdict(what, name):
    change, setting = CHANGED[what]
    with undone():
        change()
        mine = setting()
        assert said(name, EXERCISES[name].reference) == "Right."
        assert setting() == mine


def test_an_answer_that_warns_says_nothing_on_the_page(capsys):
    def answer(logits, T):
        warnings.warn("look", stacklevel=2)
        return F.softmax(logits / T)  # torch warns: over which dimension?

    check("soften", answer)
    assert capsys.readouterr() == ("Right.\n", "")


def test_the_verdict_is_the_same_each_time():
    torch.manual_seed(5)
    first = said("soften", lambda logits, T: torch.rand(logits.shape))
    assert said("soften", lambda logits, T: torch.rand(logits.shape)) == first


# what is shown


def test_check_prints_the_verdict(capsys):
    check("soften", EXERCISES["soften"].reference)
    assert capsys.readouterr().out == "Right.\n"


def test_hints_come_one_by_one(capsys, monkeypatch):
    monkeypatch.setattr("tlcourse.exercises._given", {})
    for _ in range(4):
        hint("soften")
    out = capsys.readouterr().out.splitlines()
    hints = EXERCISES["soften"].hints
    assert out == [
        *(f"Hint {i} of 3: {text}" for i, text in enumerate(hints, 1)),
        'No more hints. solution("soften") shows ours.',
    ]


@pytest.mark.parametrize("ask", [find, exercise, hint, solution, lambda name: check(name, stub)])
def test_an_unknown_name_is_refused(ask):
    with pytest.raises(ValueError, match="there is no exercise 'soft'; there are soften, "):
        ask("soft")


def test_box_and_solution_fold(name, monkeypatch):
    shown = []
    monkeypatch.setattr("tlcourse.exercises._box.display", lambda data, raw: shown.append(data))
    exercise(name)
    solution(name)
    e = EXERCISES[name]
    page = shown[0]["text/html"]
    assert page.count("<details>") == len(e.hints) + 1
    assert e.title in page
    assert f"{e.minutes} minutes" in page
    assert "`" not in page.split("<details>")[0]
    assert e.reference.__name__ in shown[1]["text/html"]
    assert shown[1]["text/plain"].startswith("Solution:\ndef ")


def test_the_solution_that_is_shown_is_the_source_of_a_right_answer(name):
    space = dict(EXERCISES[name].reference.__globals__)
    exec(source(EXERCISES[name]), space)
    assert said(name, space[EXERCISES[name].reference.__name__]) == "Right."


@pytest.mark.parametrize("chapter", [distillation, attention, lwf])
def test_every_chapter_has_three_core_exercises_of_three_kinds(chapter):
    core = [e.kind for e in chapter.EXERCISES.values() if e.core]
    assert sorted(core) == ["complete", "repair", "write"]
    assert all(
        1 <= e.difficulty <= 3 and e.minutes > 0 and e.hints for e in chapter.EXERCISES.values()
    )
    assert len(SIZES) > 4
    assert all(
        EXERCISES[name] is e for name, e in chapter.EXERCISES.items()
    )  # no chapter takes another's name


def test_every_exercise_stands_in_a_chapter_and_its_stub_says_what_it_should(repository):
    """Not attempted yet; but a bug that is to be found is diagnosed."""
    cells = [
        c
        for path in (repository / "notebooks").glob("*.ipynb")
        for c in nbformat.read(path, as_version=4).cells
    ]
    checks = [
        c for c in cells if c.cell_type == "code" and "check(" in c.source and "def my_" in c.source
    ]
    assert {name for name in EXERCISES for c in checks if f'check("{name}"' in c.source} == set(
        EXERCISES
    )
    for c in checks:
        name, defined = (
            re.search(r'check\("(\w+)"', c.source)[1],
            re.findall(r"def (my_\w+)", c.source),
        )
        assert set(re.findall(r"`(my_\w+)\(", EXERCISES[name].task)) <= set(defined), name
        text = "".join(out.get("text", "") for out in c.outputs)
        assert text.startswith(
            "Not yet:" if 'check("find_the_bug' in c.source else "Not attempted yet"
        ), text
