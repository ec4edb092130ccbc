// SPDX-License-Identifier: MIT
//
// A native model of pimlip-zoo: C and weights in one file, compiled with the C compiler of this machine.
// Needs neither torch nor LAMMPS.

#ifndef PIMLIP_NATIVE_H
#define PIMLIP_NATIVE_H

#include "pimlip_file.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pimlip {

// How certain forces are: what other weights of the last layer make of them, see pimlip_zoo.deploy.native.uncertainty.
struct Uncertainty {
  int directions = 0;    // 0: the file does not say
  double factor = 1.0, exponent = 1.0;
  double shared = 0.0;    // exponent of the root of the mean variance over all atoms
};

class Native {
 public:
  explicit Native(const std::string &file);
  ~Native();
  Native(const Native &) = delete;
  Native &operator=(const Native &) = delete;

  static bool is_native(const std::string &file);    // by its name

  Metadata metadata;
  Uncertainty uncertainty;

  // Evaluate with the last weights of a direction: 0 none at all, 1 to `directions`, or -1 as trained.
  void use_direction(int direction);

  // edge_index (2, E), centres first and sorted; see PairStyleModule for the rest. Throws ModelError.
  void evaluate(std::int64_t atoms, std::int64_t edges, int threads, const double *vectors,
                const std::int64_t *edge_index, const std::int64_t *species, const double *is_local, double *energy,
                double *gradient);

 private:
  void *library_ = nullptr;
  std::vector<char> weights_, memory_;
  char *first_weight_ = nullptr;    // at a multiple of 64
  std::vector<std::pair<std::size_t, std::size_t>> parts_;    // of the weights, that are others: offset and bytes
  std::string others_;                                        // these parts as trained, then of each direction from 0

  void read_uncertainty(const std::string &text, const std::string &content, std::size_t weights);
  std::int64_t (*workspace_)(std::int64_t, std::int64_t) = nullptr;
  int (*evaluate_)(const char *, char *, std::int64_t, std::int64_t, std::int64_t, const double *,
                   const std::int64_t *, const std::int64_t *, const double *, double *, double *) = nullptr;

  void load(const std::string &source, const std::string &hash, const std::string &level);
};

}    // namespace pimlip

#endif
