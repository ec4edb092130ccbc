// SPDX-License-Identifier: MIT

#include "pimlip_model.h"

#include "pimlip_file.h"
#include "pimlip_native.h"

#include <ATen/Parallel.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/cuda.h>
#include <torch/script.h>
#include <torch/version.h>

#include <cstdlib>
#include <sstream>
#include <unordered_map>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pimlip {

namespace {

constexpr const char *AOT_ENTRY = "pimlip";    // name of our entry point in a .pt2 package

// Errors of torch carry stack traces and hints over many lines; the last line of a TorchScript
// trace and the first of any other one say what happened.
std::string brief(const std::exception &error)
{
  const auto *torch_error = dynamic_cast<const c10::Error *>(&error);
  std::istringstream text(torch_error ? torch_error->what_without_backtrace() : error.what());
  std::string line, first, last;
  while (std::getline(text, line)) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (first.empty()) first = line;
    last = line;
  }
  if (first.rfind("The following operation failed", 0) == 0) return last;
  return first.substr(0, first.find(". This is an internal miniz error"));
}

// Compare every entry with the checksum that its writer put beside it: torch does not look at them, and would compute
// with changed weights, or map changed code.
void check_content(const std::string &file)
{
  const std::string bytes = read_file(file);
  std::unique_ptr<caffe2::serialize::PyTorchStreamReader> unpacked;    // it knows how to decompress
  for (const Entry &entry : archive_entries(bytes)) {
    std::uint32_t sum = 0;
    if (entry.compressed) {
      try {
        if (!unpacked) unpacked = std::make_unique<caffe2::serialize::PyTorchStreamReader>(file);
        const auto [content, size] = unpacked->getRecord(entry.name.substr(entry.name.find('/') + 1));
        sum = crc32(static_cast<const char *>(content.get()), size);
      } catch (const std::exception &error) {
        throw DamagedError(brief(error));
      }
    } else
      sum = crc32(bytes.data() + entry.start, entry.size);
    if (sum != entry.checksum) throw DamagedError("the checksum of " + entry.name + " does not fit");
  }
}

// Every evaluation allocates and frees arrays of the same sizes. By default glibc gives large ones back to the
// system each time, and the kernel clears all their pages again: a fifth to two fifths of a step.
void keep_freed_memory()
{
#ifdef __GLIBC__
  if (std::getenv("MALLOC_TRIM_THRESHOLD_") || std::getenv("MALLOC_MMAP_THRESHOLD_")) return;    // the user's choice
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

torch::Device choose_device(const std::string &wanted, int local_rank)
{
  const bool available = torch::cuda::is_available();
  if (wanted == "cuda" && !available) throw ModelError("device cuda was asked for, but this torch finds no GPU");
  if (wanted == "cpu" || !available) return torch::kCPU;
  const int count = static_cast<int>(torch::cuda::device_count());
  return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(local_rank % count));
}

}    // namespace

// ---------------------------------------------------------------------------------------------
// Two kinds of files behind one interface: tensors in, tensors out.

struct Model::Backend {
  torch::Device device = torch::kCPU;
  Metadata metadata;
  double padding_length = 0.0;    // > 0: graphs are padded with two atoms this far apart
  torch::Tensor energy, gradient, forces;

  virtual ~Backend() = default;
  virtual Native *native_model() { return nullptr; }
  virtual void run(const torch::Tensor &vectors, const torch::Tensor &edge_index, const torch::Tensor &species,
                   const torch::Tensor &is_local) = 0;
};

namespace {

struct TorchScriptBackend : Model::Backend {
  torch::jit::Module module;

  TorchScriptBackend(const std::string &file, torch::Device where)
  {
    device = where;
    for (const char *key : {"pimlip_format", "r_max", "type_names", "interaction_depth", "model_name", "model_dtype",
                            "force_head", "units", "torch_version", "allow_tf32"})
      metadata[key] = "";
    // Profiling would recompile in the first steps and whenever sizes change, for nothing on a CPU.
    if (device.is_cpu()) torch::jit::getProfilingMode() = false;
    try {
      module = torch::jit::load(file, device, metadata);
      module.eval();
    } catch (const std::exception &error) {
      const std::string &other = metadata["torch_version"];
      if (!other.empty() && other != TORCH_VERSION)
        throw ModelError("it was written by torch " + other + " and torch " + TORCH_VERSION +
                         " cannot load it: " + brief(error) + " (export it again with this torch)");
      throw ModelError("it is not a complete TorchScript file: " + brief(error) + " (export it again)");
    }
  }

  void run(const torch::Tensor &vectors, const torch::Tensor &edge_index, const torch::Tensor &species,
           const torch::Tensor &is_local) override
  {
    c10::Dict<std::string, torch::Tensor> input;
    input.insert("edge_vectors", vectors);
    input.insert("edge_index", edge_index);
    input.insert("atom_types", species);
    input.insert("is_local", is_local);
    const auto output = module.forward({input}).toGenericDict();
    energy = output.at("atomic_energy").toTensor();
    gradient = output.at("edge_gradient").toTensor();
    if (output.contains("forces")) forces = output.at("forces").toTensor();
  }
};

struct CompiledBackend : Model::Backend {
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader;

  CompiledBackend(const std::string &file, torch::Device where)
  {
    device = where;
    try {
      loader = std::make_unique<torch::inductor::AOTIModelPackageLoader>(file, AOT_ENTRY, false, 1, device.index());
      for (const auto &item : loader->get_metadata()) metadata[item.first] = item.second;
    } catch (const std::exception &error) {
      throw ModelError("torch " TORCH_VERSION " cannot load this compiled model: " + brief(error) +
                       " (a truncated file, another torch or another kind of processor; export it again)");
    }
    // Compiled code is bound to the torch that it was compiled against.
    const std::string own = TORCH_VERSION, theirs = metadata["torch_version"];
    if (theirs.substr(0, theirs.rfind('.')) != own.substr(0, own.rfind('.')))
      throw ModelError("it was compiled with torch " + theirs + " and this is torch " + own + " (export it again)");
    const std::string &compiled_for = metadata["AOTI_DEVICE_KEY"];
    if (compiled_for == "cuda" && device.is_cpu()) throw ModelError("it was compiled for a GPU and this run has none");
    if (compiled_for == "cpu") device = torch::kCPU;
  }

  void run(const torch::Tensor &vectors, const torch::Tensor &edge_index, const torch::Tensor &species,
           const torch::Tensor &is_local) override
  {
    const auto output = loader->run({vectors, edge_index, species, is_local});
    energy = output.at(0);
    gradient = output.at(1);
    if (output.size() > 2) forces = output[2];
  }
};

struct NativeBackend : Model::Backend {
  Native native;

  explicit NativeBackend(const std::string &file) : native(file) { metadata = native.metadata; }

  Native *native_model() override { return &native; }

  void run(const torch::Tensor &vectors, const torch::Tensor &edge_index, const torch::Tensor &species,
           const torch::Tensor &is_local) override
  {
    energy = torch::empty_like(is_local);
    gradient = torch::empty_like(vectors);
    native.evaluate(species.size(0), vectors.size(0), at::get_num_threads(), vectors.data_ptr<double>(),
                    edge_index.data_ptr<std::int64_t>(), species.data_ptr<std::int64_t>(),
                    is_local.data_ptr<double>(), energy.data_ptr<double>(), gradient.data_ptr<double>());
  }
};

}    // namespace

// ---------------------------------------------------------------------------------------------

Model::Model(const std::string &file, const std::string &device, int local_rank) : file_(file)
{
  try {
    check_path(file);
    const torch::Device where = choose_device(device, local_rank);
    keep_freed_memory();
    const bool compiled = ends_with(file, ".pt2"), native = Native::is_native(file);
    if (!native) try {
        check_content(file);
      } catch (const DamagedError &error) {
        throw ModelError(std::string("it is not a complete ") + (compiled ? "compiled model" : "TorchScript file") + ": " +
                         error.what() + " (export it again)");
      }
    if (native && device == "cuda") throw ModelError("device cuda was asked for, and native models run on CPUs");
    if (native)
      backend_ = std::make_unique<NativeBackend>(file);
    else if (compiled)
      backend_ = std::make_unique<CompiledBackend>(file, where);
    else
      backend_ = std::make_unique<TorchScriptBackend>(file, where);

    Metadata &metadata = backend_->metadata;
    contract_ = read_contract(metadata);
    if (compiled) backend_->padding_length = 2.0 * contract_.cutoff;
    const bool tf32 = metadata["allow_tf32"] == "1";
    at::globalContext().setAllowTF32CuBLAS(tf32);
    at::globalContext().setAllowTF32CuDNN(tf32);
    const char *kind = native ? ", native code" : compiled ? ", compiled" : "";
    summary_ = describe(metadata, contract_) + ", on " + backend_->device.str() + kind;
  } catch (const ModelError &error) {
    throw ModelError(file + ": " + error.what());
  }
}

Model::~Model() = default;

void Model::set_num_threads(int threads)
{
  at::set_num_threads(threads);
}

void Model::evaluate(const Graph &graph)
{
  const auto atoms = static_cast<std::int64_t>(graph.species.size());
  const auto edges = static_cast<std::int64_t>(graph.centre.size());
  const auto real = torch::TensorOptions().dtype(torch::kFloat64);
  const auto integer = torch::TensorOptions().dtype(torch::kInt64);
  // Code compiled for sizes of any number means two and more: two atoms out of each other's
  // sight, whose energies do not count, stand in where there are fewer.
  const std::int64_t extra = backend_->padding_length > 0.0 && (atoms < 2 || edges < 2) ? 2 : 0;

  torch::Tensor vectors = torch::empty({edges + extra, 3}, real);
  torch::Tensor edge_index = torch::empty({2, edges + extra}, integer);
  torch::Tensor species = torch::empty({atoms + extra}, integer);
  torch::Tensor is_local = torch::zeros({atoms + extra}, real);
  std::copy(graph.vectors.begin(), graph.vectors.end(), vectors.data_ptr<double>());
  auto *index = edge_index.data_ptr<std::int64_t>();
  std::copy(graph.centre.begin(), graph.centre.end(), index);
  std::copy(graph.neighbour.begin(), graph.neighbour.end(), index + edges + extra);
  std::copy(graph.species.begin(), graph.species.end(), species.data_ptr<std::int64_t>());
  graph.write_weights(is_local.data_ptr<double>());
  for (std::int64_t k = 0; k < extra; ++k) {
    double *vector = vectors.data_ptr<double>() + 3 * (edges + k);
    vector[0] = (k == 0 ? 1.0 : -1.0) * backend_->padding_length;
    vector[1] = vector[2] = 0.0;
    index[edges + k] = atoms + k;
    index[edges + extra + edges + k] = atoms + 1 - k;
    species.data_ptr<std::int64_t>()[atoms + k] = 0;
  }

  const torch::Device device = backend_->device;
  try {
    backend_->run(vectors.to(device), edge_index.to(device), species.to(device), is_local.to(device));
    // Rows in front stay where they are when the padding behind them is ignored.
    backend_->energy = backend_->energy.detach().to(torch::kCPU, torch::kFloat64).reshape({-1}).contiguous();
    backend_->gradient = backend_->gradient.detach().to(torch::kCPU, torch::kFloat64).contiguous();
    if (backend_->forces.defined())
      backend_->forces = backend_->forces.detach().to(torch::kCPU, torch::kFloat64).contiguous();
  } catch (const std::exception &error) {
    throw ModelError(file_ + ": evaluating " + std::to_string(atoms) + " atoms with " + std::to_string(edges) +
                     " edges failed: " + brief(error));
  }
  if (backend_->energy.numel() != atoms + extra || backend_->gradient.numel() != 3 * (edges + extra))
    throw ModelError(file_ + ": the model returned arrays of the wrong size (export it again)");
}

const double *Model::atomic_energy() const { return backend_->energy.data_ptr<double>(); }
const double *Model::edge_gradient() const { return backend_->gradient.data_ptr<double>(); }
const Uncertainty &Model::uncertainty() const
{
  static const Uncertainty none;
  const Native *const native = backend_->native_model();
  return native ? native->uncertainty : none;
}

void Model::use_direction(int direction)
{
  if (Native *const native = backend_->native_model()) native->use_direction(direction);
}

const double *Model::forces() const
{
  return backend_->forces.defined() ? backend_->forces.data_ptr<double>() : nullptr;
}

}    // namespace pimlip
