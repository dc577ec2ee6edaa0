"""What a network looks at: hand values, identities, captum where captum is right, and a model that
is left as it was.
"""

import copy

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tlcourse.methods.saliency import grad_cam, guided_backprop, guided_grad_cam
from tlcourse.models import MLP, ConvNet, WideResNet, pretrained


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


x = normal(3, 2, 8, 8)
classes = torch.tensor([0, 4, 2])


class Residual(nn.Module):
    """A block whose ReLU's input is also what is skipped: where a library goes wrong."""

    def __init__(self, inplace=False):
        super().__init__()
        self.norm, self.conv, self.relu = (
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(inplace=inplace),
        )

    def forward(self, x):
        return x + self.conv(self.relu(self.norm(x)))


def network(kind="plain", seed=0):
    torch.manual_seed(seed)
    inplace = kind == "in place"
    middle = (
        [Residual()]
        if kind == "residual"
        else [nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=inplace)]
    )
    if kind == "norm":
        middle = [
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        ]
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(inplace=inplace), nn.MaxPool2d(2), *middle]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(96, 5)).double().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return net


KINDS = ("plain", "in place", "norm", "residual")


# Grad-CAM


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_grad_cam_is_captums_where_its_negative_part_is_cut(kind, layer):
    net = network(kind)
    theirs = captum.attr.LayerGradCam(copy.deepcopy(net), None)
    theirs.layer = theirs.forward_func.get_submodule(layer)
    expected = theirs.attribute(x.clone(), target=classes, relu_attributions=True)
    assert_close(grad_cam(net, layer, x, classes), expected[:, 0].detach())


def test_grad_cam_of_a_network_that_ends_in_a_mean_is_its_class_activation_map():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ).double()
    A = net[:2](x)
    cam = torch.einsum("nk,nkhw->nhw", net[4].weight[classes], A)
    assert_close(grad_cam(net, "1", x, classes), (cam / 36).relu().detach())


def test_a_negated_logit_gives_the_places_that_speak_against():
    net = network()
    against = nn.Sequential(net, Negate())
    both = grad_cam(net, "3", x, classes), grad_cam(against, "0.3", x, classes)
    A = net[:4](x)
    gradient = torch.autograd.grad(net[4:](A).gather(1, classes[:, None]).sum(), A)[0]
    whole = (gradient.mean((2, 3), keepdim=True) * A).sum(1).detach()
    assert_close(both[0] - both[1], whole)
    assert (both[0] * both[1] == 0).all()


class Negate(nn.Module):
    def forward(self, x):
        return -x


# guided backpropagation


class Skip(nn.Module):
    """relu(x) − 2x, by several ways to call a ReLU."""

    def __init__(self, relu):
        super().__init__()
        self.relu = relu

    def forward(self, x):
        return (self.relu(x.clone()) - 2 * x).sum(1, keepdim=True)


def discarded(x):
    x.relu_()  # the result is used by its old name
    return x


RELUS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    F.relu,
    F.relu_,
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    discarded,
    lambda x: F.relu(x, inplace=True),
    lambda x: F.relu(input=x),
    nn.ReLU6(),
    nn.ReLU6(inplace=True),
    F.relu6,
    lambda x: F.hardtanh(x, 0, 6),
    lambda x: F.hardtanh_(x, 0.0, 6.0),
]


@pytest.mark.parametrize("relu", RELUS, ids=range(len(RELUS)))
def test_by_hand_whichever_way_the_relu_is_called(relu):
    """captum 0.9.0 gives (0, 0, 0)."""
    x = torch.tensor([[1.0, -1.0, 2.0]])
    assert guided_backprop(Skip(relu), x, 0).tolist() == [[-1.0, -2.0, -1.0]]


def test_what_is_negative_on_its_way_back_is_dropped_and_what_is_above_six_too():
    x = torch.tensor([[1.0, 2.0, 7.0, -3.0]])

    class Weighted(nn.Module):
        def forward(self, x):
            return (F.relu6(x) * torch.tensor([5.0, -5.0, 5.0, 5.0])).sum(1, keepdim=True)

    assert guided_backprop(Weighted(), x, 0).tolist() == [[5.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("kind", ["plain", "in place", "norm"])
def test_captum_agrees_where_no_relu_is_skipped(kind):
    net = network(kind)
    for part in (other := copy.deepcopy(net)).modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    expected = captum.attr.GuidedBackprop(other).attribute(
        x.clone().requires_grad_(), target=classes
    )
    assert_close(guided_backprop(net, x, classes), expected)


def test_with_positive_weights_above_nothing_is_dropped_so_it_is_the_gradient():
    net = network()
    for parameter in net.parameters():
        parameter.data.abs_()
    leaf = x.clone().requires_grad_()
    plain = torch.autograd.grad(net(leaf).gather(1, classes[:, None]).sum(), leaf)[0]
    assert_close(guided_backprop(net, x, classes), plain)


def test_outside_of_it_a_relu_is_a_relu():
    guided_backprop(network(), x, classes)
    leaf = torch.tensor([1.0], requires_grad=True)
    assert torch.autograd.grad(-F.relu(leaf), leaf)[0].item() == -1


# both


@pytest.mark.parametrize(
    "method",
    [
        lambda net, x, c: grad_cam(net, "3", x, c),
        guided_backprop,
        lambda net, x, c: guided_grad_cam(net, "3", x, c),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_loop_and_the_model_is_left_as_it_was(method, kind):
    net = network(kind).train()
    net[0].eval()  # modes of the parts differ
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = copy.deepcopy(net.state_dict())
    modes, parts = [part.training for part in net.modules()], list(net.modules())
    leaf = x.clone()
    with torch.no_grad():
        found = method(net, leaf, classes)
    assert torch.equal(found, method(net, leaf, classes))  # a second time gives the same
    assert_close(found, torch.cat([method(net, x[[i]], classes[[i]]) for i in range(3)]))
    assert not found.requires_grad
    assert [part.training for part in net.modules()] == modes
    assert all(a is b for a, b in zip(net.modules(), parts, strict=True))
    assert not any(
        part._forward_hooks or part._backward_hooks or part._forward_pre_hooks
        for part in net.modules()
    )
    assert (net[0].weight.grad == 1).all()
    assert all(p.grad is None for name, p in net.named_parameters() if name != "0.weight")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert torch.equal(leaf, x)
    assert leaf.grad is None


def test_a_frozen_model_and_inference_mode_are_no_obstacle():
    net = network().requires_grad_(False)
    expected = grad_cam(network(), "3", x, classes), guided_backprop(network(), x, classes)
    with torch.inference_mode():
        assert_close(grad_cam(net, "3", x, classes), expected[0])
        assert_close(guided_backprop(net, x, classes), expected[1])


def test_the_product_is_the_product():
    net = network()
    coarse = F.interpolate(grad_cam(net, "3", x, classes)[:, None], (8, 8), mode="bilinear")
    assert_close(guided_grad_cam(net, "3", x, classes), guided_backprop(net, x, classes) * coarse)


def test_one_class_serves_the_whole_batch():
    net = network()
    assert torch.equal(grad_cam(net, "3", x, 2), grad_cam(net, "3", x, torch.tensor([2, 2, 2])))


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken inside")


@pytest.mark.parametrize(
    "method", [lambda net: grad_cam(net, "0", x, 0), lambda net: guided_backprop(net, x, 0)]
)
def test_the_model_is_left_as_it_was_also_when_something_raises(method):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), Broken()).double().train()
    with pytest.raises(RuntimeError, match="broken inside"):
        method(net)
    assert all(part.training and not part._forward_hooks for part in net.modules())
    leaf = torch.tensor([1.0], requires_grad=True)
    assert torch.autograd.grad(-F.relu(leaf), leaf)[0].item() == -1


OTHERS = {
    "clip": lambda x: torch.clip(x, 0),
    "clamp in place": lambda x: torch.clamp_(x, 0),
    "clamp_min": lambda x: x.clamp_min(0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "half of x + |x|": lambda x: (x + x.abs()) / 2,
    "threshold": lambda x: torch.threshold(x, 0, 0),
    "aten": torch.ops.aten.relu,
    "scripted": torch.jit.script(nn.ReLU()),
    "leaky": lambda x: F.leaky_relu_(x.clone()),
    "prelu": nn.PReLU(),
    "rrelu": nn.RReLU(),
    "softmax": nn.Softmax(1),
    **{
        part.__name__: part()
        for part in (
            nn.SELU,
            nn.CELU,
            nn.ELU,
            nn.GELU,
            nn.Mish,
            nn.Sigmoid,
            nn.Tanh,
            nn.LogSigmoid,
            nn.Softplus,
        )
    },
    **{
        part.__name__: part()
        for part in (nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink)
    },
}


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


OTHERS |= {
    "log softmax": nn.LogSoftmax(1),
    "attention": lambda z: F.scaled_dot_product_attention(z, z, z),
    "attention written out": lambda z: (
        z.flatten(2).softmax(2) @ z.flatten(2).mT @ torch.ones(3, 36)
    ),
    "square": lambda z: z**2,
    "squared relu": lambda z: F.relu(z) ** 2,
    "exp": torch.exp,
    "sin": torch.sin,
    "atan": torch.atan,
    "log1p": lambda z: F.relu(z).log1p(),
    "sqrt": lambda z: F.relu(z).sqrt(),
    "reciprocal": lambda z: 1 / (2 + z),
    "gelu by erf": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
    "logsumexp": lambda z: z - z.logsumexp(1, keepdim=True),
    "layer norm": nn.LayerNorm(6),
    "group norm": nn.GroupNorm(1, 3),
    "instance norm": nn.InstanceNorm2d(3),
    "batch norm of the batch": nn.BatchNorm2d(3, track_running_stats=False),
    "normalised": lambda z: F.normalize(z),
    "standardised": lambda z: (z - z.mean()) / z.std(),
    "times itself": lambda z: z * z,
    "a gate": lambda z: z * z.mean((2, 3), keepdim=True),
    "divided by itself": lambda z: z / z.sum().detach() / z.amax(),
    "constant over x": lambda z: torch.div(torch.ones(1), 2 + z),
    "matrix of itself": lambda z: z.flatten(2) @ z.flatten(2).mT @ torch.ones(3, 36),
    "a filter of its own": lambda z: F.conv2d(z, z[:1].expand(3, -1, -1, -1)[..., :1, :1]),
    "rounded": lambda z: z + torch.div(z, 2, rounding_mode="floor"),
    "abs": torch.abs,
    "in place on a part": lambda z: halves(z.clone(), torch.Tensor.sigmoid_),
    "in place on a view": nn.Sequential(
        nn.Flatten(), nn.SiLU(inplace=True), nn.Unflatten(1, (3, 6, 6))
    ),
    "scaled in place on a part": lambda z: halves(z.clone(), lambda part: part.mul_(z[:, 1])),
    "checkpointed": lambda z: checkpoint(torch.tanh, z, use_reentrant=True),
    "its own": lambda z: Tanh.apply(z),
}


def halves(z, function):
    function(z[:, 0])
    return z


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(out := z.tanh())
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0] ** 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_one_relu_does_not_hide_another_nonlinearity(kind):
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 1),
        Called(OTHERS[kind]),
        nn.Flatten(),
        nn.Linear(108, 5),
    ).float()
    with pytest.raises(ValueError, match="defined for ReLUs, and this model computes"):
        guided_backprop(net, x.float(), 0)


def padded(z):
    out = torch.zeros(len(z), 5, 6, 6)
    out[:, 1:4] = z
    return out[:, 1:4]


STEPS = {
    "1x1 convolution": nn.Conv2d(3, 3, 1),
    "transposed": nn.ConvTranspose2d(3, 3, 1),
    "batch norm": nn.BatchNorm2d(3).train(False),
    "dropout": nn.Dropout(0.5),
    "residual": lambda z: z + 2 * z,
    "difference": lambda z: 1 - (z - 3 * z.flip(2)) / 2,
    "concatenated": lambda z: torch.cat([z, -z], 1)[:, 1:4],
    "stacked": lambda z: torch.stack([z, z]).sum(0),
    "split": lambda z: torch.cat(z.split([1, 2], 1)[::-1], 1),
    "chunks": lambda z: torch.cat(z.chunk(3, 1), 1),
    "unbound": lambda z: torch.stack(z.unbind(1), 1),
    "turned": lambda z: z.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "matrix": lambda z: torch.einsum("nchw,kc->nkhw", z, torch.ones(3, 3)),
    "linear over channels": lambda z: F.linear(z.movedim(1, 3), torch.eye(3)).movedim(3, 1),
    "scaled": lambda z: z * torch.linspace(1, 2, 6) / torch.tensor(3.0),
    "masked by hand": lambda z: z * (z.detach() > 0),
    "average": nn.AvgPool2d(1),
    "adaptive average": nn.AdaptiveAvgPool2d(6),
    "mean": lambda z: z.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6),
    "max": nn.MaxPool2d(3, 1, padding=1),
    "adaptive max": nn.AdaptiveMaxPool2d(6),
    "amax": lambda z: z.amax(1, keepdim=True).repeat(1, 3, 1, 1),
    "max over channels": lambda z: z.max(1, keepdim=True)[0].expand(-1, 3, -1, -1),
    **{
        f"{mode} up and down": lambda z, m=mode: F.interpolate(
            F.interpolate(z, 9, mode=m), 6, mode=m
        )
        for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact")
    },
    **{
        f"{mode} padding": lambda z, m=mode: F.pad(z, (1, 1, 1, 1), mode=m)[..., 1:-1, 1:-1]
        for mode in ("constant", "reflect", "replicate", "circular")
    },
    "pixel shuffle": lambda z: F.pixel_unshuffle(F.pixel_shuffle(z.repeat(1, 4, 1, 1), 2), 2)[
        :, ::4
    ],
    "shuffled": lambda z: z.reshape(len(z), 3, 1, 6, 6).transpose(1, 2).flatten(1, 2).roll(1, 1),
    "gathered": lambda z: z[:, [2, 0, 1]].index_select(1, torch.tensor([0, 1, 2])),
    "blocks": lambda z: F.fold(F.unfold(z, 2, stride=2), (6, 6), 2, stride=2),
    "written into zeros": padded,
    "in place on a part": lambda z: halves(z.clone(), lambda part: part.add_(z[:, 1]).sub_(1)),
    "another kind of number": lambda z: z.double().float(),
    "spectral norm": nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
}


@pytest.mark.parametrize("kind", STEPS)
def test_what_is_linear_or_chooses_is_accepted(kind):
    """With positive weights nothing is dropped where the step has no negative ones either."""
    step = Called(STEPS[kind])
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), step, nn.Flatten(), nn.Linear(108, 5)).eval()
    A = net[1](net[0](x.float())).detach().requires_grad_()
    score = net[2:](A).gather(1, classes[:, None]).sum()
    kept = torch.autograd.grad(score, A)[0].clamp(min=0) * (A > 0)
    expected = F.conv_transpose2d(kept, net[0].weight).detach()
    assert_close(guided_backprop(net, x.float(), classes), expected)


def test_a_relu_in_place_on_a_view_is_a_relu():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.Flatten(), nn.ReLU(), nn.Linear(108, 5)]
    expected = guided_backprop(nn.Sequential(*layers).double(), x, classes)
    layers[2] = nn.ReLU(inplace=True)
    assert_close(guided_backprop(nn.Sequential(*layers).double(), x, classes), expected)


OURS = {
    "MLP": lambda: MLP(128, 10, 5, dropout=0.5),
    "ConvNet": lambda: ConvNet(5, channels=2, size=8, width=8, units=32),
    "WideResNet": lambda: WideResNet(10, 1, 5, channels=2, base=2),
    "resnet18": lambda: torchvision.models.resnet18(),
    "tf_efficientnet_lite0": lambda: pretrained(),
}


@pytest.mark.parametrize("name", OURS)
def test_the_networks_of_the_course_are_accepted(name):
    torch.manual_seed(0)
    net = OURS[name]()
    photo = torch.rand(1, *((2, 8, 8) if name in ("MLP", "ConvNet", "WideResNet") else (3, 64, 64)))
    found = guided_backprop(net, photo, 3)
    assert found.shape == photo.shape
    assert found.isfinite().all()
    assert found.abs().sum() > 0
    assert all(p.requires_grad for p in net.parameters())


class Prepares(nn.Module):
    """Normalises its input in place."""

    def forward(self, x):
        return x.sub_(0.5).div_(0.25)


def test_a_model_may_work_in_place_on_what_it_is_given():
    net = network()
    prepared, before = nn.Sequential(Prepares(), *net), x.clone()
    expected = guided_grad_cam(
        nn.Sequential(Called(lambda x: (x - 0.5) / 0.25), *net), "4", x, classes
    )
    assert_close(guided_grad_cam(prepared, "4", x, classes), expected)
    assert torch.equal(x, before)


def test_what_was_made_in_inference_mode_may_be_asked_about():
    net = network()
    expected = grad_cam(net, "3", x, classes), guided_backprop(net, x, classes)
    with torch.inference_mode():
        made, asked = x * 1, classes * 1
        assert_close(grad_cam(net, "3", made, asked), expected[0])
        assert_close(guided_backprop(net, made, asked), expected[1])
    assert_close(grad_cam(net, "3", made, asked), expected[0])


class Merging(nn.Linear):
    """Adds its own update to its weight while it is in eval mode, as adapters do."""

    merged = False

    def train(self, mode=True):
        self.weight.data.add_(
            1.0 if self.merged and mode else -1.0 if not self.merged and not mode else 0.0
        )
        self.merged = not mode
        return super().train(mode)


def test_parts_that_act_on_a_change_of_mode_are_told_of_the_way_back():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), Merging(108, 5)).double()
    before = net[3].weight.detach().clone()
    grad_cam(net, "1", x, 0)
    assert net[3].training
    assert not net[3].merged
    assert_close(net[3].weight.detach(), before)


PIXELS = (torch.uint8, torch.int64, torch.bool)
METHODS = {
    "grad_cam": lambda net, x, c: grad_cam(net, "1", x, c),
    "guided_backprop": guided_backprop,
    "guided_grad_cam": lambda net, x, c: guided_grad_cam(net, "1", x, c),
}


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("method", METHODS)
def test_pixels_that_are_whole_numbers_are_refused(method, kind):
    with pytest.raises(ValueError, match=f"^x must be floating point, got {kind}$"):
        METHODS[method](network(), torch.ones(3, 2, 8, 8).to(kind), 0)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int16])
def test_classes_may_be_whole_numbers_of_any_kind(kind):
    net = network()
    assert torch.equal(grad_cam(net, "3", x, classes.to(kind)), grad_cam(net, "3", x, classes))


def test_a_layer_may_be_given_itself():
    net = network("residual")
    assert torch.equal(grad_cam(net, net[3].conv, x, classes), grad_cam(net, "3.conv", x, classes))
    assert_close(guided_grad_cam(net, net[3], x, 1), guided_grad_cam(net, "3", x, 1))
    net.again = net[0]
    assert torch.equal(grad_cam(net[:-1], net.again, x, 1), grad_cam(net[:-1], "0", x, 1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_works_or_is_refused(backend):
    torch._dynamo.reset()
    net = network()
    expected = grad_cam(net, "3", x, classes)
    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        compiled(x)  # hooks come later
    assert_close(grad_cam(compiled, "_orig_mod.3", x, classes), expected)
    assert_close(grad_cam(compiled, net[3], x, classes), expected)
    with pytest.raises(ValueError, match="defined for ReLUs, and this model computes"):
        guided_backprop(compiled, x, classes)
    net.compile(backend=backend)
    assert_close(grad_cam(net, "3", x, classes), expected)


class Beside(nn.Module):
    """A layer whose output goes nowhere."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(2, 2, 3), nn.LSTM(8, 3)

    def forward(self, x):
        self.conv(x)
        self.other(x[:, 0])
        return x.flatten(1)[:, :5]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)).flatten(1)[:, :5]


def with_(activation):
    return nn.Sequential(nn.Conv2d(2, 3, 3), activation, nn.Flatten(), nn.Linear(108, 5)).double()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grad_cam(network(), "9", x, 0), "the model has no layer '9'; it has 0, 1, 2, 3"),
        (lambda: grad_cam(network(), "", x, 0), "the model has no layer ''"),
        (
            lambda: grad_cam(network(), nn.Conv2d(2, 6, 3), x, 0),
            "the model has no layer that is this Conv2d; it has 0, 1, 2, 3",
        ),
        (lambda: grad_cam(net := network(), net, x, 0), "no layer that is this Sequential"),
        (lambda: grad_cam(network(), "6", x, 0), r"must give \(N, C, H, W\), got \(3, 5\)"),
        (
            lambda: grad_cam(Twice().double(), "conv", x, 0),
            "must be met once in a forward pass, it was met 2 times",
        ),
        (
            lambda: grad_cam(Beside().double(), "other", x, 0),
            "the layer 'other' must give a tensor, got tuple",
        ),
        (
            lambda: grad_cam(Beside().double(), "conv", x, 0),
            "the logits must depend on the layer 'conv'",
        ),
        (
            lambda: grad_cam(network(), "3", x, classes[:2]),
            r"one for each of 3 images, got \(2,\), torch.int64",
        ),
        (
            lambda: grad_cam(network(), "3", x, 1.0),
            r"must be one whole number or one for each of 3 images, got \(\), torch.float32",
        ),
        (
            lambda: guided_backprop(nn.Sequential(network(), Called(lambda z: z[:2])), x, 0),
            "for each of 3 images, got 2",
        ),
        (lambda: grad_cam(network(), "3", x, 5), "classes must be in 0 … 4, got 5"),
        (lambda: guided_backprop(network(), x, -1), "classes must be in 0 … 4, got -1"),
        (
            lambda: guided_backprop(network()[:3], x, 0),
            r"the model must give logits of shape \(N, K\)",
        ),
        (lambda: guided_backprop(with_(nn.Identity()), x, 0), "this one computes none"),
        (
            lambda: guided_backprop(with_(nn.SiLU()), x, 0),
            "defined for ReLUs, and this model computes Silu",
        ),
        (lambda: guided_backprop(with_(nn.LeakyReLU()), x, 0), "this model computes LeakyRelu"),
        (lambda: guided_backprop(with_(nn.Hardtanh()), x, 0), "this model computes Hardtanh"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
