// SPDX-License-Identifier: MIT

#include "pimlip_file.h"

#include "pimlip_model.h"

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace pimlip {

namespace {

constexpr int FORMAT_VERSION = 1;

template <typename Number> Number read_number(const std::string &bytes, std::size_t at)
{
  if (at + sizeof(Number) > bytes.size()) throw DamagedError("it is cut off");
  Number value;
  std::memcpy(&value, bytes.data() + at, sizeof(Number));
  return value;
}

}    // namespace

std::string read_file(const std::string &file)
{
  std::ifstream stream(file, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
}

std::uint32_t crc32(const char *bytes, std::size_t count)
{
  static const auto table = [] {
    std::array<std::uint32_t, 256> rows{};
    for (std::uint32_t k = 0; k < 256; k++) {
      rows[k] = k;
      for (int bit = 0; bit < 8; bit++) rows[k] = rows[k] & 1 ? 0xEDB88320u ^ (rows[k] >> 1) : rows[k] >> 1;
    }
    return rows;
  }();
  std::uint32_t sum = 0xFFFFFFFFu;
  for (std::size_t k = 0; k < count; k++) sum = table[(sum ^ static_cast<unsigned char>(bytes[k])) & 255] ^ (sum >> 8);
  return ~sum;
}

std::vector<Entry> archive_entries(const std::string &bytes)
{
  const std::size_t end = bytes.rfind("PK\5\6");
  if (end == std::string::npos) throw DamagedError("it has no directory");
  const int count = read_number<std::uint16_t>(bytes, end + 10);
  std::size_t at = read_number<std::uint32_t>(bytes, end + 16);
  std::vector<Entry> entries;
  for (int k = 0; k < count; k++) {
    if (at > end || bytes.compare(at, 4, "PK\1\2") != 0) throw DamagedError("its directory is damaged");
    Entry entry;
    entry.compressed = read_number<std::uint16_t>(bytes, at + 10) != 0;
    entry.checksum = read_number<std::uint32_t>(bytes, at + 16);
    entry.size = read_number<std::uint32_t>(bytes, at + 20);
    const std::size_t name = read_number<std::uint16_t>(bytes, at + 28), local = read_number<std::uint32_t>(bytes, at + 42);
    entry.start =
        local + 30 + read_number<std::uint16_t>(bytes, local + 26) + read_number<std::uint16_t>(bytes, local + 28);
    if (at + 46 + name > bytes.size() || entry.start + entry.size > bytes.size())
      throw DamagedError("its directory is damaged");
    entry.name = bytes.substr(at + 46, name);
    // A wrong bit in the directory alone would take an entry away: its name stands beside its content, too.
    if (bytes.compare(local, 4, "PK\3\4") != 0 || read_number<std::uint16_t>(bytes, local + 26) != name ||
        bytes.compare(local + 30, name, entry.name) != 0)
      throw DamagedError("its directory is damaged");
    entries.push_back(entry);
    at += 46 + name + read_number<std::uint16_t>(bytes, at + 30) + read_number<std::uint16_t>(bytes, at + 32);
  }
  if (entries.empty()) throw DamagedError("its directory is damaged");
  return entries;
}

bool ends_with(const std::string &text, const std::string &ending)
{
  return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

void check_path(const std::string &file)
{
  if (!std::ifstream(file, std::ios::binary).good()) throw ModelError("the file cannot be read");
  if (std::filesystem::is_directory(file))
    throw ModelError("it is a folder (write a file of the run with `pimlip-zoo export`)");
  if (ends_with(file, ".ckpt")) throw ModelError("it is a checkpoint (write a file of it with `pimlip-zoo export`)");
}

Contract read_contract(Metadata &metadata)
{
  const std::string &format = metadata["pimlip_format"];
  if (format.empty()) throw ModelError("it has no metadata of pimlip-zoo (write it with `pimlip-zoo export`)");
  if (format != std::to_string(FORMAT_VERSION))
    throw ModelError("its format is version " + format + " and this pair style reads version " +
                     std::to_string(FORMAT_VERSION) + " (export the model and build the plugin with one pimlip-zoo)");
  for (const char *key : {"r_max", "type_names", "interaction_depth", "units"})
    if (metadata[key].empty()) throw ModelError(std::string("its metadata lack ") + key + " (export it again)");
  if (metadata["units"] != "eV Angstrom") throw ModelError("its units are " + metadata["units"] + ", not eV and Å");
  Contract contract;
  try {
    contract.cutoff = std::stod(metadata["r_max"]);
    contract.depth = std::stoi(metadata["interaction_depth"]);
  } catch (const std::exception &) {
    throw ModelError("its metadata are damaged: r_max is '" + metadata["r_max"] + "', interaction_depth is '" +
                     metadata["interaction_depth"] + "' (export it again)");
  }
  contract.direct = metadata["force_head"] == "direct";
  std::istringstream names(metadata["type_names"]);
  for (std::string name; names >> name;) contract.species.push_back(name);
  if (!(contract.cutoff > 0.0) || contract.depth < 1 || contract.species.empty())
    throw ModelError("its metadata are damaged: cutoff, depth or species are missing (export it again)");
  return contract;
}

std::string describe(Metadata &metadata, const Contract &contract)
{
  std::ostringstream text;
  text << metadata["model_name"] << ", " << metadata["model_dtype"] << ", cutoff " << contract.cutoff << " Å, "
       << (contract.depth == 1 ? "strictly local" : std::to_string(contract.depth) + " message-passing layers");
  return text.str();
}

}    // namespace pimlip
