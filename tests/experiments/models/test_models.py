import pytest
import torch
from torch import nn

from regrow.experiments.errors import UserError
from regrow.experiments.models import MODELS, build
from regrow.experiments.models.wide_resnet import wide_resnet

MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 64, 64)

# The published counts; ResNets on small images, which changes none of their parameters.
CASES = {
    "lenet300-100": (MNIST, 10, 266_610),
    "lenet5": (MNIST, 10, 431_080),
    "alexnet-s": (CIFAR, 10, 5_077_066),
    "alexnet-b": (CIFAR, 10, 8_501_322),
    "vgg16-c": (CIFAR, 10, 11_323_466),
    "vgg16-d": (CIFAR, 10, 15_255_626),
    "vgg16-like": (CIFAR, 10, 14_991_946),
    "vgg-small": (CIFAR, 10, 283_674),
    "wrn-28-2": (CIFAR, 10, 1_467_610),
    "wrn-22-8": (CIFAR, 10, 17_158_106),
    "wrn-16-4": (CIFAR, 10, 2_748_890),
    "wrn-16-8": (CIFAR, 10, 10_961_370),
    "wrn-16-10": (CIFAR, 10, 17_116_634),
    "resnet18": (IMAGENET, 1000, 11_689_512),
    "resnet50": (IMAGENET, 1000, 25_557_032),
    "mlp": (CIFAR, 10, (3072 + 1) * 4096 + 4097 * 4096 + 4097 * 10),
}


ON_TEXT = {"gpt"}  # these have tests of their own


def build_case(name):
    image_shape, classes, _ = CASES[name]
    torch.manual_seed(0)
    return build(name, image_shape=image_shape, classes=classes)


def images(name, count=2):
    return torch.randn(count, *CASES[name][0], generator=torch.Generator().manual_seed(1))


def quick(name, image_shape=CIFAR, **options):
    """A model without weights, where only its structure matters."""
    with torch.device("meta"):
        return build(name, image_shape=image_shape, classes=10, **options)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model and its name; module scope groups the tests by model, so that each is built once."""
    return request.param, build_case(request.param)


def test_every_model_has_a_case():
    assert CASES.keys() | ON_TEXT == MODELS.keys()


def test_parameter_count(case):
    name, model = case
    assert sum(parameter.numel() for parameter in model.parameters()) == CASES[name][2]


def test_trains_every_parameter(case):
    name, model = case
    logits = model.train()(images(name, count=4))
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # A norm cancels the bias before it, so that only rounding errors are left of such a gradient.
        assert parameter.grad.any() or parameter_name.endswith("bias"), parameter_name
    model.zero_grad()


def test_eval_is_repeatable_and_traceable(case):
    name, model = case
    model.eval()
    with torch.no_grad():
        first = model(images(name))
        assert first.shape == (2, CASES[name][1])
        torch.testing.assert_close(model(images(name)), first, rtol=0, atol=0)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(images(name)), first, rtol=0, atol=0)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert len(calls) == len(set(calls)), "a module is used twice"
    assert not [node for node in traced.graph.nodes if "relu" in str(node.target) and node.op != "call_module"]


def test_seed_decides_the_weights(case):
    name, model = case
    again = dict(build_case(name).named_parameters())
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(parameter, again[parameter_name]), parameter_name


def test_convolutions_start_kaiming_normal_with_fan_out():
    torch.manual_seed(0)
    model = build("wrn-16-8", image_shape=CIFAR, classes=10)
    convolution = model.get_submodule("group3.1.conv2")
    assert convolution.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert not model.get_submodule("fc").bias.any()


def test_vgg_starts_as_pytorch_does():
    torch.manual_seed(0)
    model = build("vgg16-d", image_shape=CIFAR, classes=10)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            started = module.weight.clone(), module.bias.clone()
            module.reset_parameters()
            assert torch.equal(module.weight, started[0])
            assert torch.equal(module.bias, started[1])


def test_vgg16_c_pads_its_1x1_convolutions():
    model = quick("vgg16-c")
    ones = [name for name, module in model.named_modules() if getattr(module, "kernel_size", None) == (1, 1)]
    assert ones == ["conv3_3", "conv4_3", "conv5_3"]
    assert all(model.get_submodule(name).padding == (1, 1) for name in ones)
    assert model.get_submodule("fc6").in_features == 512 * 2 * 2


@pytest.mark.parametrize(("version", "strided"), [("v1", "conv1"), ("v1.5", "conv2")])
def test_resnet50_version_moves_the_stride(version, strided):
    model = quick("resnet50", version=version)
    block = model.get_submodule("layer2.0")
    assert {name: getattr(block, name).stride[0] for name in ("conv1", "conv2", "conv3")} == {
        "conv1": 1,
        "conv2": 1,
        "conv3": 1,
        strided: 2,
    }
    assert model.get_submodule("layer1.0.conv2").stride == (1, 1)


def test_a_resnet18_for_small_images_keeps_their_size():
    model = quick("resnet18", stem="cifar")
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert model[:4](torch.empty(1, *CIFAR, device="meta")).shape == (1, 64, 32, 32)
    with pytest.raises(UserError, match="stem must be imagenet or cifar"):
        quick("resnet18", stem="small")


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_gamma_silences_each_block(name, last):
    model = build(name, image_shape=IMAGENET, classes=10, zero_gamma=True)
    silent = {
        key for key, value in model.named_parameters() if "bn" in key and key.endswith("weight") and not value.any()
    }
    assert silent == {key for key, _ in model.named_parameters() if key.endswith(f"{last}.weight")}


def test_resnet_parameters_have_torchvision_names():
    names = {name for name, _ in quick("resnet50").named_parameters()}
    assert {
        "conv1.weight",
        "bn1.bias",
        "layer1.0.downsample.0.weight",
        "layer4.2.bn3.weight",
        "fc.bias",
    } <= names


@pytest.mark.parametrize("name", CASES)
def test_the_width_multiplies_planes_and_hidden_layers(name):
    whole, half = quick(name), quick(name, width=0.5)
    for layer, other in zip(whole.modules(), half.modules(), strict=True):
        if isinstance(layer, nn.Conv2d):
            assert 2 * other.out_channels == layer.out_channels
        elif isinstance(layer, nn.Linear):
            assert other.out_features in (layer.out_features / 2, 10)
    assert half[-1].out_features == 10
    assert half(torch.empty(2, *CIFAR, device="meta")).shape == (2, 10)


def test_wide_resnet_options():
    model = quick("wrn-28-2", dropout=0.0)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    with pytest.raises(ValueError, match="it is 27"):
        wide_resnet(27, 2, image_shape=CIFAR, classes=10)


@pytest.mark.parametrize("name", ["lenet5", "alexnet-s", "vgg16-c", "wrn-28-2", "resnet18", "mlp"])
def test_other_image_shapes(name):
    model = quick(name, image_shape=(4, 40, 36))
    assert model(torch.empty(2, 4, 40, 36, device="meta")).shape == (2, 10)


def test_mlp_without_hidden_layers_is_linear():
    layers = [module for module in quick("mlp", hidden=()).modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(3072, 10)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg16", {}, "no model 'vgg16'; did you mean vgg16-"),
        ("zzz", {}, "no model 'zzz'; choose from lenet300-100, lenet5, "),
        ("lenet5", {"hidden": (3,)}, "lenet5 takes no option hidden; its options: width"),
        ("vgg16-d", {"width": 0.001}, "model vgg16-d: width 0.001 leaves none of 64 planes"),
        ("wrn-16-8", {"depth": 22}, "wrn-16-8 takes no option depth; its options: dropout"),
        ("resnet50", {"version": "v2"}, "resnet50: version must be v1 or v1.5; it is 'v2'"),
        ("wrn-16-8", {"dropout": 2.0}, "wrn-16-8: dropout"),
        ("vgg16-d", {"image_shape": MNIST}, "vgg16-d: the images are too small"),
    ],
)
def test_mistakes_are_named_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        quick(name, **options)
    assert "\n" not in str(error.value)
