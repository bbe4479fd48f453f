// The Python module regrow._kernels. Tensors arrive as addresses: regrow.ops checks dtype, layout and sizes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "group.h"
#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace nb = nanobind;
using namespace regrow;

namespace {

const Kernels* chosen = nullptr;

const Kernels& kernels() { return *chosen; }

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// An address, as whatever a kernel takes there.
struct Address {
    uintptr_t number;

    template <class T>
    operator T*() const {
        return pointer<T>(number);
    }
};

// Calls body(kernels) with those for activations of bfloat16, or of float32.
template <class Body>
void with_kernels(bool bfloat16, Body&& body) {
    const nb::gil_scoped_release release;
    if (bfloat16) return body(kernels().bfloat16);
    body(kernels().float32);
}

using Activation = nb::ndarray<nb::pytorch, nb::device::cpu>;

// Not a view in PyTorch's eyes, as one made of a tensor of another shape would be: it may be written in place.
Activation allocate(const std::vector<size_t>& shape, const std::vector<int64_t>& strides, bool bfloat16) {
    if (strides.size() != shape.size()) throw std::invalid_argument("a tensor needs as many strides as sides");
    size_t bytes = bfloat16 ? sizeof(Bfloat16) : sizeof(float);
    const nb::dlpack::dtype type{
        static_cast<uint8_t>(bfloat16 ? nb::dlpack::dtype_code::Bfloat : nb::dlpack::dtype_code::Float),
        static_cast<uint8_t>(8 * bytes), 1};
    for (const size_t size : shape)
        if (__builtin_mul_overflow(bytes, size, &bytes)) throw std::bad_alloc();
    const Memory memory = take_memory(bytes);
    if (!memory.data) throw std::bad_alloc();
    const nb::capsule owner(new Memory(memory), [](void* taken) noexcept {
        const auto* back = static_cast<Memory*>(taken);
        give_back_memory(*back);
        delete back;
    });
    return Activation(memory.data, shape.size(), shape.data(), owner, strides.data(), type);
}

// A tensor that takes over the memory of a vector.
template <class T>
nb::ndarray<nb::pytorch, T, nb::ndim<1>, nb::c_contig, nb::device::cpu> own(std::vector<T>&& numbers) {
    numbers.shrink_to_fit();
    auto* kept = new std::vector<T>(std::move(numbers));
    const nb::capsule owner(kept, [](void* vector) noexcept { delete static_cast<std::vector<T>*>(vector); });
    return {kept->data(), {kept->size()}, owner};
}

void must(bool complete) {
    if (!complete) throw std::bad_alloc();
}

void check_axis(const Axis& axis) {
    if (axis.input < 0 || axis.output < 0 || axis.kernel < 1 || axis.stride < 1 || axis.padding < 0 ||
        axis.dilation < 1)
        throw std::invalid_argument(
            "sizes and padding of a plane must not be negative, and kernel, stride and dilation must be at least 1");
}

// Whether the sizes of one axis belong together; the kernels rely on it.
void check_plane(const Axis& axis, bool transposed) {
    const int64_t plane = transposed ? axis.output : axis.input, windows = transposed ? axis.input : axis.output;
    const int64_t span = (axis.kernel - int64_t{1}) * axis.dilation + 1, padded = plane + int64_t{2} * axis.padding;
    if (padded < span)
        throw std::invalid_argument("a kernel that spans " + std::to_string(span) + " does not fit a plane of " +
                                    std::to_string(padded) + ", padding included: give a larger input or more padding");
    const int64_t fitting = (padded - span) / axis.stride + 1;
    if (windows != fitting)
        throw std::invalid_argument("a plane of " + std::to_string(plane) + " has " + std::to_string(fitting) +
                                    " outputs, not " + std::to_string(windows));
}

}  // namespace

NB_MODULE(_kernels, module) {
    module.doc() =
        "Kernels over the nonzeros of a weight; see regrow.ops for the functions that check their arguments.";
    chosen = &best_kernels();
#ifdef REGROW_ONE_THREAD
    module.attr("openmp") = false;
#else
    module.attr("openmp") = true;
#endif

    nb::class_<Axis>(module, "Axis", "One axis of a convolution, in the direction of the gather.")
        .def(
            "__init__",
            [](Axis* self, int64_t input, int64_t output, int32_t kernel, int32_t stride, int32_t padding,
               int32_t dilation) {
                const Axis axis{.input = input,
                                .output = output,
                                .kernel = kernel,
                                .stride = stride,
                                .padding = padding,
                                .dilation = dilation};
                check_axis(axis);
                new (self) Axis(axis);
            },
            nb::arg("input"), nb::arg("output"), nb::arg("kernel"), nb::arg("stride"), nb::arg("padding"),
            nb::arg("dilation"));

    nb::class_<Geometry>(module, "Geometry", "Batch and plane of a convolution.")
        .def(
            "__init__",
            [](Geometry* self, int64_t batch, const Axis& height, const Axis& width, bool transposed) {
                if (batch < 0) throw std::invalid_argument("a batch cannot have fewer than 0 samples");
                check_plane(height, transposed);
                check_plane(width, transposed);
                new (self) Geometry{.batch = batch, .height = height, .width = width, .transposed = transposed};
            },
            nb::arg("batch"), nb::arg("height"), nb::arg("width"), nb::arg("transposed"));

    nb::class_<Index>(module, "Index", "Addresses of the index tensors of one direction of a weight.")
        .def(
            "__init__",
            [](Index* self, uintptr_t order, uintptr_t place, uintptr_t segment_row, uintptr_t segment_start,
               uintptr_t block_start, uintptr_t blocking, int64_t nonzeros, int64_t rows, int64_t channels) {
                const int32_t* choice = pointer<const int32_t>(blocking);
                new (self) Index{.order = pointer<const int32_t>(order),
                                 .tap_offset = pointer<const int16_t>(place),
                                 .segment_row = pointer<const int32_t>(segment_row),
                                 .segment_start = pointer<const int32_t>(segment_start),
                                 .block_start = pointer<const int32_t>(block_start),
                                 .nonzeros = nonzeros,
                                 .rows = rows,
                                 .channels = channels,
                                 .channels_per_block = choice[0],
                                 .sweep = choice[1] != 0,
                                 .unit = choice[2]};
            },
            nb::arg("order"), nb::arg("place"), nb::arg("segment_row"), nb::arg("segment_start"),
            nb::arg("block_start"), nb::arg("blocking"), nb::arg("nonzeros"), nb::arg("rows"), nb::arg("channels"));

    module.def(
        "group",
        [](uintptr_t positions, bool wide, int64_t nonzeros, int64_t outputs, int64_t channels, int64_t taps,
           int64_t groups, bool transposed, int64_t channels_per_block, uintptr_t phase, int64_t phases, int64_t unit) {
            const Grouping grouping{.outputs = outputs,
                                    .channels = channels,
                                    .taps = taps,
                                    .groups = groups,
                                    .transposed = transposed,
                                    .channels_per_block = channels_per_block,
                                    .phase = pointer<const int32_t>(phase),
                                    .phases = phases,
                                    .unit = unit};
            Groups made;
            {
                nb::gil_scoped_release release;
                made = wide ? group(grouping, pointer<const int64_t>(positions), nonzeros)
                            : group(grouping, pointer<const int32_t>(positions), nonzeros);
            }
            return nb::make_tuple(own(std::move(made.order)), own(std::move(made.tap_offset)),
                                  own(std::move(made.segment_row)), own(std::move(made.segment_start)),
                                  own(std::move(made.block_start)));
        },
        nb::arg("positions"), nb::arg("wide"), nb::arg("nonzeros"), nb::arg("outputs"), nb::arg("channels"),
        nb::arg("taps"), nb::arg("groups"), nb::arg("transposed"), nb::arg("channels_per_block"), nb::arg("phase"),
        nb::arg("phases"), nb::arg("unit") = 1,
        "Group the nonzeros at sorted positions: the tensors of regrow.pattern.Blocks but the last.");

    module.def(
        "check_index",
        [](uintptr_t order, int64_t orders, uintptr_t place, int64_t places, uintptr_t segment_row,
           int64_t segment_rows, uintptr_t segment_start, int64_t segment_starts, uintptr_t block_start,
           int64_t block_starts, int64_t values, int64_t rows, int64_t channels, int64_t channels_per_block,
           int64_t taps, uintptr_t phase, int64_t phases, int64_t unit) {
            const IndexTensors index{.order = {pointer<const int32_t>(order), orders},
                                     .tap_offset = {pointer<const int16_t>(place), places},
                                     .segment_row = {pointer<const int32_t>(segment_row), segment_rows},
                                     .segment_start = {pointer<const int32_t>(segment_start), segment_starts},
                                     .block_start = {pointer<const int32_t>(block_start), block_starts}};
            const Expected expected{.values = values,
                                    .rows = rows,
                                    .channels = channels,
                                    .channels_per_block = channels_per_block,
                                    .taps = taps,
                                    .phase = pointer<const int32_t>(phase),
                                    .phases = phases,
                                    .unit = unit};
            nb::gil_scoped_release release;
            return fault_of(index, expected);
        },
        nb::arg("order"), nb::arg("orders"), nb::arg("place"), nb::arg("places"), nb::arg("segment_row"),
        nb::arg("segment_rows"), nb::arg("segment_start"), nb::arg("segment_starts"), nb::arg("block_start"),
        nb::arg("block_starts"), nb::arg("values"), nb::arg("rows"), nb::arg("channels"), nb::arg("channels_per_block"),
        nb::arg("taps"), nb::arg("phase") = 0, nb::arg("phases") = 1, nb::arg("unit") = 1,
        R"(Say in words what is wrong with an index; an empty string where a kernel may have it.

Time is linear in the size of the index. Call it before a kernel sees an index that was loaded or handed in.

Args:
    order, place, segment_row, segment_start, block_start: addresses of contiguous tensors, int32 but `place`, int16.
    orders, places, segment_rows, segment_starts, block_starts: how many elements each of them has.
    values: how many weights are active.
    rows: output channels of this direction of the weight (input channels of the layer in the transposed one).
    channels: input channels of this direction, of all groups.
    channels_per_block: first element of `blocking`.
    taps: height times width of the kernel.
    phase: address of the phase of each tap, int32, as for `group`; 0 where there is one phase, or to leave it unchecked.
    phases: how many phases the output has: the product of the strides in the transposed direction, else 1.
    unit: output rows of an entry, third element of `blocking`.)");

    module.def(
        "gather",
        [](const Geometry& geometry, const Index& index, uintptr_t values, uintptr_t bias, uintptr_t input,
           uintptr_t output, int threads, bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                must(kernels.gather(geometry, index, Address{values}, Address{bias}, Address{input}, Address{output},
                                    usable_threads(threads)));
            });
        },
        nb::arg("geometry"), nb::arg("index"), nb::arg("values"), nb::arg("bias"), nb::arg("input"), nb::arg("output"),
        nb::arg("threads"), nb::arg("bfloat16") = false);

    module.def(
        "input_gradient",
        [](const Geometry& geometry, const Index& index, uintptr_t values, uintptr_t output_gradient,
           uintptr_t input_gradient, int threads, bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                must(kernels.input_gradient(geometry, index, Address{values}, Address{output_gradient},
                                            Address{input_gradient}, usable_threads(threads)));
            });
        },
        nb::arg("geometry"), nb::arg("index"), nb::arg("values"), nb::arg("output_gradient"), nb::arg("input_gradient"),
        nb::arg("threads"), nb::arg("bfloat16") = false,
        "The gradient of the input, by an index of units and the geometry of the gather.");

    module.def(
        "values_gradient",
        [](const Geometry& geometry, const Index& index, uintptr_t output_gradient, uintptr_t input,
           const Normalised* normalised, uintptr_t gradient, uintptr_t bias_gradient, int threads, bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                must(kernels.values_gradient(geometry, index, Address{output_gradient}, Address{input}, normalised,
                                             Address{gradient}, Address{bias_gradient}, usable_threads(threads)));
            });
        },
        nb::arg("geometry"), nb::arg("index"), nb::arg("output_gradient"), nb::arg("input"),
        nb::arg("normalised").none(), nb::arg("gradient"), nb::arg("bias_gradient"), nb::arg("threads"),
        nb::arg("bfloat16") = false);

    module.def(
        "transpose",
        [](uintptr_t from, int64_t from_pitch, int64_t from_distance, uintptr_t to, int64_t to_pitch,
           int64_t to_distance, int64_t rows, int64_t columns, int64_t count, int threads, bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.transpose(Address{from}, from_pitch, from_distance, Address{to}, to_pitch, to_distance, rows,
                                  columns, count, usable_threads(threads));
            });
        },
        nb::arg("source"), nb::arg("source_pitch"), nb::arg("source_distance"), nb::arg("target"),
        nb::arg("target_pitch"), nb::arg("target_distance"), nb::arg("rows"), nb::arg("columns"), nb::arg("count"),
        nb::arg("threads"), nb::arg("bfloat16") = false);

    nb::class_<Dropout>(module, "Dropout", "Which share is dropped, and the seed that says what.")
        .def(
            "__init__",
            [](Dropout* self, double share, uint64_t seed) { new (self) Dropout{.share = share, .seed = seed}; },
            nb::arg("share"), nb::arg("seed"));

    module.def(
        "drop",
        [](const Dropout& dropout, int64_t channels, int64_t length, uintptr_t input, uintptr_t output, int threads,
           bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.drop(dropout, channels, length, Address{input}, Address{output}, usable_threads(threads));
            });
        },
        nb::arg("dropout"), nb::arg("channels"), nb::arg("length"), nb::arg("input"), nb::arg("output"),
        nb::arg("threads"), nb::arg("bfloat16") = false);

    nb::class_<Normalisation>(module, "Normalisation", "Batch normalisation of channels that are contiguous runs.")
        .def(
            "__init__",
            [](Normalisation* self, int64_t channels, int64_t length, double epsilon, bool relu, bool training,
               const Dropout& dropout) {
                new (self) Normalisation{.channels = channels,
                                         .length = length,
                                         .epsilon = epsilon,
                                         .relu = relu,
                                         .training = training,
                                         .dropout = dropout};
            },
            nb::arg("channels"), nb::arg("length"), nb::arg("epsilon"), nb::arg("relu"), nb::arg("training"),
            nb::arg("dropout"));

    nb::class_<RunningStatistics>(module, "RunningStatistics", "Addresses of statistics that follow the batches.")
        .def(
            "__init__",
            [](RunningStatistics* self, uintptr_t mean, uintptr_t variance, uintptr_t batches, double momentum) {
                new (self) RunningStatistics{.mean = pointer<float>(mean),
                                             .variance = pointer<float>(variance),
                                             .batches = pointer<int64_t>(batches),
                                             .momentum = momentum};
            },
            nb::arg("mean"), nb::arg("variance"), nb::arg("batches"), nb::arg("momentum"));

    nb::class_<Normalised>(module, "Normalised", "What a normalisation with given mean and variance makes of an input.")
        .def(
            "__init__",
            [](Normalised* self, const Normalisation& shape, uintptr_t weight, uintptr_t bias, uintptr_t mean,
               uintptr_t variance) {
                new (self) Normalised{.shape = shape,
                                      .tensors = {.weight = pointer<const float>(weight),
                                                  .bias = pointer<const float>(bias),
                                                  .mean = pointer<float>(mean),
                                                  .variance = pointer<float>(variance)}};
            },
            nb::arg("shape"), nb::arg("weight"), nb::arg("bias"), nb::arg("mean"), nb::arg("variance"));

    module.def(
        "normalise",
        [](const Normalisation& shape, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t variance,
           const RunningStatistics& running, uintptr_t input, uintptr_t residual, uintptr_t output, int threads,
           bool bfloat16) {
            const NormalisationTensors tensors{.weight = pointer<const float>(weight),
                                               .bias = pointer<const float>(bias),
                                               .mean = pointer<float>(mean),
                                               .variance = pointer<float>(variance)};
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.normalise(shape, tensors, running, Address{input}, Address{residual}, Address{output},
                                  usable_threads(threads));
            });
        },
        nb::arg("shape"), nb::arg("weight"), nb::arg("bias"), nb::arg("mean"), nb::arg("variance"), nb::arg("running"),
        nb::arg("input"), nb::arg("residual"), nb::arg("output"), nb::arg("threads"), nb::arg("bfloat16") = false);

    module.def(
        "normalise_gradient",
        [](const Normalisation& shape, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t variance,
           uintptr_t output_gradient, uintptr_t input, uintptr_t output, uintptr_t input_gradient,
           uintptr_t residual_gradient, uintptr_t weight_gradient, uintptr_t bias_gradient, int threads,
           bool bfloat16) {
            const NormalisationTensors tensors{.weight = pointer<const float>(weight),
                                               .bias = pointer<const float>(bias),
                                               .mean = pointer<float>(mean),
                                               .variance = pointer<float>(variance)};
            with_kernels(bfloat16, [&]<class Number>(const KernelsOf<Number>& kernels) {
                const NormalisationGradients<Number> gradients{.input = Address{input_gradient},
                                                               .residual = Address{residual_gradient},
                                                               .weight = Address{weight_gradient},
                                                               .bias = Address{bias_gradient}};
                kernels.normalise_gradient(shape, tensors, Address{output_gradient}, Address{input}, Address{output},
                                           gradients, usable_threads(threads));
            });
        },
        nb::arg("shape"), nb::arg("weight"), nb::arg("bias"), nb::arg("mean"), nb::arg("variance"),
        nb::arg("output_gradient"), nb::arg("input"), nb::arg("output"), nb::arg("input_gradient"),
        nb::arg("residual_gradient"), nb::arg("weight_gradient"), nb::arg("bias_gradient"), nb::arg("threads"),
        nb::arg("bfloat16") = false);

    module.def(
        "max_pool",
        [](const Geometry& geometry, int64_t channels, uintptr_t input, uintptr_t output, uintptr_t winner, int threads,
           bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.max_pool(geometry, channels, Address{input}, Address{output}, Address{winner},
                                 usable_threads(threads));
            });
        },
        nb::arg("geometry"), nb::arg("channels"), nb::arg("input"), nb::arg("output"), nb::arg("winner"),
        nb::arg("threads"), nb::arg("bfloat16") = false);

    module.def(
        "max_pool_gradient",
        [](const Geometry& geometry, int64_t channels, uintptr_t output_gradient, uintptr_t winner,
           uintptr_t input_gradient, int threads, bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.max_pool_gradient(geometry, channels, Address{output_gradient}, Address{winner},
                                          Address{input_gradient}, usable_threads(threads));
            });
        },
        nb::arg("geometry"), nb::arg("channels"), nb::arg("output_gradient"), nb::arg("winner"),
        nb::arg("input_gradient"), nb::arg("threads"), nb::arg("bfloat16") = false);

    module.def(
        "mean_pool",
        [](const Geometry& geometry, int64_t channels, int64_t divisor, uintptr_t input, uintptr_t output, int threads,
           bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.mean_pool(geometry, channels, divisor, Address{input}, Address{output},
                                  usable_threads(threads));
            });
        },
        nb::arg("geometry"), nb::arg("channels"), nb::arg("divisor"), nb::arg("input"), nb::arg("output"),
        nb::arg("threads"), nb::arg("bfloat16") = false);

    module.def(
        "mean_pool_gradient",
        [](const Geometry& geometry, int64_t channels, int64_t divisor, uintptr_t output_gradient,
           uintptr_t input_gradient, int threads, bool bfloat16) {
            with_kernels(bfloat16, [&](const auto& kernels) {
                kernels.mean_pool_gradient(geometry, channels, divisor, Address{output_gradient},
                                           Address{input_gradient}, usable_threads(threads));
            });
        },
        nb::arg("geometry"), nb::arg("channels"), nb::arg("divisor"), nb::arg("output_gradient"),
        nb::arg("input_gradient"), nb::arg("threads"), nb::arg("bfloat16") = false);

    module.def("allocate", &allocate, nb::arg("shape"), nb::arg("strides"), nb::arg("bfloat16") = false,
               nb::rv_policy::reference,
               "A tensor of uninitialised numbers, whose memory is kept for the next one when it is gone.");
    module.def(
        "release_memory", [] { return release_memory(); },
        "Return to the system the memory of tensors that are gone; in bytes.");

    module.def("instruction_set", [] { return std::string(kernels().name); }, "Name of the kernels in use.");
    module.def(
        "use_instruction_set",
        [](const std::string& name) {
            const Kernels* found = find_kernels(name.c_str());
            if (!found) throw std::invalid_argument("this processor or build has no kernels for '" + name + "'");
            chosen = found;
        },
        nb::arg("name"), "Use the kernels of one instruction set: 'portable', 'avx2' or 'avx512'.");
}
