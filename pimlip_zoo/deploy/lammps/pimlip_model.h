// SPDX-License-Identifier: MIT
//
// A model file of pimlip-zoo, loaded and evaluated, with libtorch or without. Knows nothing of LAMMPS, and whoever
// includes this header needs nothing of torch.

#ifndef PIMLIP_MODEL_H
#define PIMLIP_MODEL_H

#include "pimlip_file.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace pimlip {

// What goes wrong with a file or in the model; one line that a user can act on.
struct ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Uncertainty;

// Atoms and directed edges of one evaluation. Å; edges sorted by centre.
struct Graph {
  std::vector<double> vectors;                    // (E, 3) from the centre to the neighbour
  std::vector<std::int64_t> centre, neighbour;    // (E,) rows of atoms
  std::vector<std::int64_t> species;              // (N,) index into the model's species
  std::int64_t num_local = 0;                     // only the energies of the first so many atoms count
  std::vector<double> weights;                    // (num_local,) by which their energies count, or empty: 1

  void clear()
  {
    vectors.clear(), centre.clear(), neighbour.clear(), species.clear(), weights.clear();
    num_local = 0;
  }

  // What the energies of its atoms count by, those of the local ones; `into` has room for all.
  void write_weights(double *into) const
  {
    std::fill_n(into, species.size(), 0.0);
    if (weights.empty())
      std::fill_n(into, num_local, 1.0);
    else
      std::copy(weights.begin(), weights.end(), into);
  }
};

class Model {
 public:
  // device: "auto", "cpu" or "cuda"; local_rank spreads the ranks of a node over its GPUs.
  Model(const std::string &file, const std::string &device, int local_rank);
  ~Model();

  const Contract &contract() const { return contract_; }
  const std::string &summary() const { return summary_; }    // one line for the log

  // Evaluates a graph; the results below stay valid until the next call.
  void evaluate(const Graph &graph);
  const double *atomic_energy() const;    // (N,) eV
  // (E, 3) eV/Å, derivative of the (weighted) local atoms' energy by each edge vector. A native model may put what belongs to an
  // edge and its opposite on either of the two: forces and virials, sums over both, are the same.
  const double *edge_gradient() const;
  const double *forces() const;           // (N, 3) eV/Å of a direct force head, or null: forces follow from the gradient

  // How certain forces are; native models only. See Native.
  const Uncertainty &uncertainty() const;
  void use_direction(int direction);

  // Threads that torch uses within one operation.
  static void set_num_threads(int threads);

  struct Backend;    // a TorchScript file, a compiled or a native one

 private:
  std::unique_ptr<Backend> backend_;
  Contract contract_;
  std::string file_, summary_;
};

}    // namespace pimlip

#endif
