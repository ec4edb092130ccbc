// SPDX-License-Identifier: MIT
//
// What exported files of every kind have in common. Needs neither torch nor LAMMPS.

#ifndef PIMLIP_FILE_H
#define PIMLIP_FILE_H

#include <cstdint>
#include <stdexcept>
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

// One entry of a zip archive, by its directory.
struct Entry {
  std::string name;
  bool compressed = false;
  std::uint32_t checksum = 0;         // crc32 of its content
  std::size_t start = 0, size = 0;    // of its bytes in the file
};

// Not what was written.
class DamagedError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The bytes of a file.
std::string read_file(const std::string &file);

// Throws DamagedError where these bytes are no zip archive, or not a whole one.
std::vector<Entry> archive_entries(const std::string &bytes);

// The checksum of zip archives.
std::uint32_t crc32(const char *bytes, std::size_t count);

bool ends_with(const std::string &text, const std::string &ending);

}    // namespace pimlip

#endif
