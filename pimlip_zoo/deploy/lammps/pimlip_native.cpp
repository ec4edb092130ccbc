// SPDX-License-Identifier: MIT

#include "pimlip_native.h"

#include "pimlip_model.h"
#include "pimlip_sha256.h"

#include <cerrno>
#include <chrono>
#include <dlfcn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace pimlip {

namespace {

constexpr const char *SUFFIX = ".pimlip";
constexpr const char *COPIES = ".load-";    // begins the names of folders with copies of libraries, as in Python

constexpr const char *DAMAGED = "it is not a complete native model (export it again)";
constexpr const char *OTHER = "it is not a native model (write it with `pimlip-zoo export --format native`)";

// The entries of a zip archive without compression.
std::unordered_map<std::string, std::string> read_archive(const std::string &file)
{
  const std::string bytes = read_file(file);
  std::unordered_map<std::string, std::string> entries;
  for (const Entry &entry : archive_entries(bytes)) {
    if (entry.compressed) throw ModelError(OTHER);
    if (crc32(bytes.data() + entry.start, entry.size) != entry.checksum) throw DamagedError("");
    entries[entry.name] = bytes.substr(entry.start, entry.size);
  }
  return entries;
}

// Which of the sources this processor takes, as in pimlip_zoo.deploy.native.library.
std::string machine_level()
{
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return "any";
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? "v4" : "v3";
#else
  return "any";
#endif
}

// Whether a file or folder is this user's; others are kept from writing to it from now on. What is loaded runs with the
// user's rights: whoever else may write there must not choose it.
bool belongs_to_user(const std::filesystem::path &path)
{
  struct stat found{};
  if (stat(path.c_str(), &found) != 0 || found.st_uid != getuid()) return false;
  return !(found.st_mode & 022) || chmod(path.c_str(), found.st_mode & 07755) == 0;
}

std::filesystem::path cache_folder()
{
  const char *base = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  std::filesystem::path folder = base && *base ? base : home ? std::string(home) + "/.cache" : "/tmp";
  folder /= "pimlip-zoo/kernels";
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  const bool ours = belongs_to_user(folder.parent_path()) && belongs_to_user(folder);
  if (!failed && ours && access(folder.c_str(), W_OK) == 0) return folder;
  // Others may write beside it, and would name a library as they like: the folder has to be one's own.
  folder = std::filesystem::temp_directory_path() / ("pimlip-zoo-" + std::to_string(getuid()));
  mkdir(folder.c_str(), 0700);
  struct stat found{};
  if (lstat(folder.c_str(), &found) != 0 || !S_ISDIR(found.st_mode) || found.st_uid != getuid() || (found.st_mode & 022))
    throw ModelError("there is no folder for what is compiled of it (set XDG_CACHE_HOME to one that can be written to)");
  return folder;
}

std::string quoted(const std::string &text)
{
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// The hash of a library's content stands beside it, as pimlip_zoo.files.seal writes it: one that is truncated or damaged
// would end the process that maps it.
std::filesystem::path seal_of(const std::filesystem::path &library)
{
  return library.string() + ".sha256";
}

bool is_intact(const std::filesystem::path &library)
{
  std::error_code failed;
  if (!std::filesystem::is_regular_file(library, failed) || !std::filesystem::is_regular_file(seal_of(library), failed))
    return false;
  struct stat found{};
  if (stat(library.c_str(), &found) != 0 || found.st_uid != getuid() || (found.st_mode & 022)) return false;
  std::string seal;
  std::ifstream(seal_of(library)) >> seal;
  return seal.size() == 64 && seal == sha256(read_file(library.string()));
}

void *open_copy_in(const std::filesystem::path &place, const std::string &name, const std::string &content)
{
  std::string folder = (place / (std::string(COPIES) + "XXXXXX")).string();
  if (!mkdtemp(&folder[0])) return nullptr;    // for this user alone
  const std::string copy = folder + "/" + name;
  bool whole = false;
  {
    std::ofstream out(copy, std::ios::binary);
    out << content << std::flush;
    whole = static_cast<bool>(out);
  }
  void *const found = whole ? dlopen(copy.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  std::remove(copy.c_str());
  rmdir(folder.c_str());
  return found;
}

// Of processes that were killed while they loaded.
void remove_old_copies(const std::filesystem::path &place)
{
  std::error_code failed;
  const auto day_ago = std::filesystem::file_time_type::clock::now() - std::chrono::hours(24);
  std::vector<std::filesystem::path> found;
  for (const auto &entry : std::filesystem::directory_iterator(place, failed)) {
    const bool ours = entry.path().filename().string().rfind(COPIES, 0) == 0 && entry.is_directory(failed);
    if (ours && entry.last_write_time(failed) < day_ago && !failed) found.push_back(entry.path());
  }
  for (const auto &path : found) std::filesystem::remove_all(path, failed);
}

// A library is mapped, not read: where its file is shortened later, by a copy over it or a cleaner of disks, the next page
// that is touched ends the process by SIGBUS. What is loaded is therefore a copy that has no name any more, as in
// pimlip_zoo.compiled.private; null where there is none, of a cache that cannot be written to.
void *open_private_copy(const std::filesystem::path &library)
{
  std::string seal;
  std::ifstream(seal_of(library)) >> seal;
  const std::string content = read_file(library.string());
  if (sha256(content) != seal) throw ModelError(library.string() + " was changed while it was loaded (start again)");
  const std::filesystem::path cache = library.parent_path();
  remove_old_copies(cache);
  void *found = open_copy_in(cache, library.filename().string(), content);
  std::error_code failed;
  const std::filesystem::path other = found ? cache : std::filesystem::temp_directory_path(failed);
  return found || failed ? found : open_copy_in(other, library.filename().string(), content);
}

// What compilers that were killed left of this library; the caller holds its lock, so that none is at work.
void remove_leftovers(const std::filesystem::path &library)
{
  std::error_code failed;
  const std::string start = library.filename().string() + ".";
  std::vector<std::filesystem::path> found;
  for (const auto &entry : std::filesystem::directory_iterator(library.parent_path(), failed)) {
    const std::string name = entry.path().filename().string(), ending = entry.path().extension().string();
    if (name.rfind(start, 0) == 0 && (ending == ".c" || ending == ".tmp" || ending == ".log")) found.push_back(entry.path());
  }
  for (const auto &path : found) std::filesystem::remove(path, failed);
}

// Leaves `library` behind, complete or not at all.
void compile(const std::string &source, const std::string &level, const std::filesystem::path &library)
{
  const std::string stem = library.string() + "." + std::to_string(getpid());
  const std::string text = stem + ".c", built = stem + ".tmp", log = stem + ".log";
  if (std::ofstream out(text); !(out << source << std::flush)) {
    const std::string reason = std::strerror(errno);
    out.close();
    std::remove(text.c_str());
    throw ModelError(text + " cannot be written: " + reason);
  }
  const std::string march = level == "any" ? "" : " -march=x86-64-" + level;
  const std::string flags = " -std=gnu11 -O3 -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast -w" + march;
  const char *chosen = std::getenv("CC");
  std::vector<std::string> compilers = {"cc", "gcc", "clang"};
  if (chosen && *chosen) {    // a program whose path has spaces, or words for the shell
    const bool program = std::strchr(chosen, ' ') && access(chosen, X_OK) == 0;
    compilers = {program ? quoted(chosen) : chosen};
  }
  const int absent = 127;    // what the shell says of a program that is not there
  int status = absent;
  std::string compiler;
  for (std::size_t k = 0; k < compilers.size() && status == absent; k++) {
    compiler = compilers[k];
    for (const char *parallel : {" -fopenmp ", " "})    // one thread is better than no model
      if (status != 0) {
        const std::string command = compiler + flags + parallel + quoted(text) + " -shared -o " + quoted(built) + " -lm";
        const int code = std::system((command + " > " + quoted(log) + " 2>&1").c_str());
        status = WIFEXITED(code) ? WEXITSTATUS(code) : 1;
      }
  }
  std::string reason;
  if (status != 0) {
    std::ifstream lines(log);
    for (std::string line; std::getline(lines, line);)
      if (reason.empty() || (line.find("error") != std::string::npos && reason.find("error") == std::string::npos))
        reason = line;
  } else {
    belongs_to_user(built);    // takes from others the right to write
    // The seal first: with it and without the library, or with another's, the library is compiled again.
    const std::string seal = stem + ".seal.tmp";
    std::ofstream out(seal);
    out << sha256(read_file(built)) << "\n" << std::flush;
    if (!out) reason = seal + " cannot be written: " + std::strerror(errno);
    out.close();
    std::error_code failed;
    if (reason.empty()) std::filesystem::rename(seal, seal_of(library), failed);
    if (reason.empty() && !failed) std::filesystem::rename(built, library, failed);
    if (failed) reason = library.string() + " cannot be written: " + failed.message();
    std::remove(seal.c_str());
    if (!reason.empty()) status = -1;
  }
  for (const auto &scratch : {text, built, log}) std::remove(scratch.c_str());
  if (status == -1) throw ModelError(reason);
  if (status == 0) return;
  if (status == absent)
    throw ModelError("there is no C compiler " + compilers.front() + ", and a native model is compiled where it is used (install "
                     "gcc or set CC, or load it once where there is one, with the same cache folder " +
                     library.parent_path().string() + ")");
  throw ModelError("the C compiler " + compiler + " failed: " + reason + " (give another one as CC)");
}

}    // namespace

bool Native::is_native(const std::string &file)
{
  return ends_with(file, SUFFIX);
}

Native::Native(const std::string &file)
{
  std::unordered_map<std::string, std::string> entries;
  try {
    entries = read_archive(file);
  } catch (const DamagedError &) {
    throw ModelError(DAMAGED);
  }
  const std::string prefix = "pimlip/extra/";
  for (const auto &entry : entries)
    if (entry.first.rfind(prefix, 0) == 0) metadata[entry.first.substr(prefix.size())] = entry.second;
  read_contract(metadata);    // before anything of another version is compiled
  const std::string level = machine_level();
  const std::string source = level == "v4" ? "model-64.c" : level == "v3" ? "model-32.c" : "model-16.c";
  const std::string &hash = metadata[source];    // names a file of the cache
  if (!entries.count("pimlip/" + source) || !entries.count("pimlip/weights.bin") || hash.size() != 64 ||
      hash.find_first_not_of("0123456789abcdef") != std::string::npos)
    throw ModelError(OTHER);
  // The name is what later runs trust: a file must not have its own code kept under the hash of another's.
  if (sha256(entries["pimlip/" + source]) != hash)
    throw ModelError("the hash of " + source + " is not that of its text (export it again)");
  load(entries["pimlip/" + source], hash, level);

  const std::string &weights = entries["pimlip/weights.bin"];
  const auto *expected = static_cast<const std::int64_t *>(dlsym(library_, "pimlip_weight_bytes"));
  if (!expected || *expected != static_cast<std::int64_t>(weights.size()))
    throw ModelError("its weights are not complete (export it again)");
  weights_.resize(weights.size() + 64);
  const auto address = reinterpret_cast<std::uintptr_t>(weights_.data());
  char *start = weights_.data() + (64 - address % 64) % 64;
  std::memcpy(start, weights.data(), weights.size());
  first_weight_ = start;
  if (!metadata["uncertainty"].empty())
    read_uncertainty(metadata["uncertainty"], entries["pimlip/uncertainty.bin"], weights.size());
}

void Native::read_uncertainty(const std::string &text, const std::string &content, std::size_t weights)
{
  const ModelError damaged("what it says of its uncertainty is damaged (export it again)");
  std::istringstream words(text);
  double quantile;
  if (!(words >> uncertainty.directions >> uncertainty.factor >> uncertainty.exponent >> quantile)) throw damaged;
  std::size_t row = 0, offset, size;
  const std::streampos behind = words.tellg();
  std::string next;
  words >> next;
  words.clear();
  words.seekg(behind);
  if (next.find(':') == std::string::npos && !(words >> uncertainty.shared)) throw damaged;    // older files lack it
  for (char colon; words >> offset >> colon >> size;) {
    if (colon != ':' || offset > weights || size > weights - offset || size == 0) throw damaged;
    parts_.emplace_back(offset, size);
    others_.append(first_weight_ + offset, size);
    row += size;
  }
  const auto rows = static_cast<std::size_t>(uncertainty.directions) + 1;
  if (!words.eof() || uncertainty.directions < 1 || row == 0 || content.size() % row != 0 || content.size() / row != rows)
    throw damaged;
  others_ += content;
}

void Native::use_direction(int direction)
{
  std::size_t row = 0;
  for (const auto &part : parts_) row += part.second;
  const char *from = others_.data() + static_cast<std::size_t>(direction + 1) * row;
  for (const auto &part : parts_) {
    std::memcpy(first_weight_ + part.first, from, part.second);
    from += part.second;
  }
}

Native::~Native()
{
  // OpenMP's threads may still refer to the library: it stays loaded.
}

void Native::load(const std::string &source, const std::string &hash, const std::string &level)
{
  const auto library = cache_folder() / ("native-" + hash.substr(0, 32) + "-" + level + ".so");
  // All ranks of a node come here at once: one compiles, the others wait.
  const std::string lock = library.string() + ".lock";
  if (!is_intact(library)) {
    std::FILE *held = std::fopen(lock.c_str(), "w");
    if (held) flock(fileno(held), LOCK_EX);
    std::string reason;
    try {
      if (held) remove_leftovers(library);
      if (!is_intact(library)) compile(source, level, library);
    } catch (const std::exception &error) {
      reason = error.what();
    }
    if (held) std::fclose(held);
    if (!reason.empty()) throw ModelError(reason);
  }
  library_ = open_private_copy(library);
  if (!library_) library_ = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library_) throw ModelError(std::string("what was compiled of it cannot be loaded: ") + dlerror() +
                     " (set XDG_CACHE_HOME to a folder on a file system where programs may run)");
  workspace_ = reinterpret_cast<decltype(workspace_)>(dlsym(library_, "pimlip_workspace"));
  evaluate_ = reinterpret_cast<decltype(evaluate_)>(dlsym(library_, "pimlip_evaluate"));
  if (!workspace_ || !evaluate_) throw ModelError(OTHER);
}

void Native::evaluate(std::int64_t atoms, std::int64_t edges, int threads, const double *vectors,
                      const std::int64_t *edge_index, const std::int64_t *species, const double *is_local,
                      double *energy, double *gradient)
{
  const auto needed = static_cast<std::size_t>(workspace_(atoms, edges));
  if (memory_.size() < needed) {
    std::vector<char>().swap(memory_);    // let go of it first
    memory_.resize(needed + needed / 8);
  }
  const int wrong = evaluate_(first_weight_, memory_.data(), atoms, edges, threads, vectors, edge_index, species,
                              is_local, energy, gradient);
  if (wrong) throw ModelError("the graph does not fit the model (reason " + std::to_string(wrong) + ")");
}

}    // namespace pimlip
