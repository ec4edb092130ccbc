// SPDX-License-Identifier: MIT
//
// The model of pair_style pimlip where there is no torch: native files only. Takes the place of
// pimlip_model.cpp.

#include "pimlip_model.h"

#include "pimlip_native.h"

#include <algorithm>
#include <cstdlib>

namespace pimlip {

namespace {

int threads_of_environment()
{
  const char *given = std::getenv("OMP_NUM_THREADS");
  const int count = given ? std::atoi(given) : 1;
  return count > 0 ? count : 1;
}

int num_threads = threads_of_environment();

}    // namespace

struct Model::Backend {
  explicit Backend(const std::string &file) : native(file) {}
  Native native;
  std::vector<std::int64_t> edge_index;
  std::vector<double> is_local, energy, gradient;
};

Model::Model(const std::string &file, const std::string &device, int /*local_rank*/) : file_(file)
{
  try {
    check_path(file);
    if (!Native::is_native(file))
      throw ModelError("this plugin was built without torch and reads native models "
                       "(`pimlip-zoo export --format native`) only");
    if (device == "cuda") throw ModelError("device cuda was asked for, and native models run on CPUs");
    backend_ = std::make_unique<Backend>(file);
    contract_ = read_contract(backend_->native.metadata);
    summary_ = describe(backend_->native.metadata, contract_) + ", on cpu, native code";
  } catch (const ModelError &error) {
    throw ModelError(file + ": " + error.what());
  }
}

Model::~Model() = default;

void Model::set_num_threads(int threads)
{
  num_threads = threads;
}

void Model::evaluate(const Graph &graph)
{
  const auto atoms = static_cast<std::int64_t>(graph.species.size());
  const auto edges = static_cast<std::int64_t>(graph.centre.size());
  Backend &b = *backend_;
  b.edge_index.assign(graph.centre.begin(), graph.centre.end());
  b.edge_index.insert(b.edge_index.end(), graph.neighbour.begin(), graph.neighbour.end());
  b.is_local.resize(atoms);
  graph.write_weights(b.is_local.data());
  b.energy.resize(atoms);
  b.gradient.resize(3 * edges);
  try {
    b.native.evaluate(atoms, edges, num_threads, graph.vectors.data(), b.edge_index.data(), graph.species.data(),
                      b.is_local.data(), b.energy.data(), b.gradient.data());
  } catch (const ModelError &error) {
    throw ModelError(file_ + ": " + error.what());
  }
}

const double *Model::atomic_energy() const { return backend_->energy.data(); }
const double *Model::edge_gradient() const { return backend_->gradient.data(); }
const double *Model::forces() const { return nullptr; }
const Uncertainty &Model::uncertainty() const { return backend_->native.uncertainty; }
void Model::use_direction(int direction) { backend_->native.use_direction(direction); }

}    // namespace pimlip
