// SPDX-License-Identifier: MIT
//
// What exported files of every kind have in common. Needs neither torch nor LAMMPS.

#ifndef PIMLIP_FILE_H
#define PIMLIP_FILE_H

#include <string>
#include <unordered_map>
#include <vector>

namespace pimlip {

using Metadata = std::unordered_map<std::string, std::string>;

// What a pair style has to know of a model.
struct Contract {
  double cutoff = 0.0;                 // Å
  int depth = 0;                       // cutoffs that information travels
  bool direct = false;                 // forces come from a head of their own, not from the energy
  std::vector<std::string> species;    // chemical symbols
};

// Throws ModelError where there is no file that could be an exported one: missing, a folder, a checkpoint.
void check_path(const std::string &file);

// Throws ModelError where the format is another version's, or a key is missing or damaged.
Contract read_contract(Metadata &metadata);

// For the log: architecture, precision, cutoff, depth.
std::string describe(Metadata &metadata, const Contract &contract);

bool ends_with(const std::string &text, const std::string &ending);

}    // namespace pimlip

#endif
