// SPDX-License-Identifier: MIT

#include "pimlip_file.h"

#include "pimlip_model.h"

#include <filesystem>
#include <fstream>
#include <sstream>

namespace pimlip {

namespace {

constexpr int FORMAT_VERSION = 1;

}    // namespace

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
