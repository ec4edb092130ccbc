// SPDX-License-Identifier: GPL-2.0-only
//
// Registers pair_style pimlip with LAMMPS when `plugin load` opens the shared library. Not needed where
// the pair style is compiled into LAMMPS.

#include "lammps.h"
#include "pair_pimlip.h"

#if __has_include("lammpsplugin.h")
#include "lammpsplugin.h"
#else
// Binary packages of LAMMPS come without this header; the interface is documented under "Writing plugins".
extern "C" {
typedef void *(lammpsplugin_factory1) (void *);
typedef void *(lammpsplugin_factory2) (void *, int, char **);
typedef struct {
  const char *version, *style, *name, *info, *author;
  union {
    lammpsplugin_factory1 *v1;
    lammpsplugin_factory2 *v2;
  } creator;
  void *handle;
} lammpsplugin_t;
typedef void (*lammpsplugin_regfunc)(lammpsplugin_t *, void *);
}
#endif

static void *create_pair(void *lmp)
{
  return new LAMMPS_NS::PairPimlip(static_cast<LAMMPS_NS::LAMMPS *>(lmp));
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin_t plugin;
  plugin.version = static_cast<LAMMPS_NS::LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "pimlip";
  plugin.info = "interatomic potentials of pimlip-zoo";
  plugin.author = "the pimlip-zoo developers";
  plugin.creator.v1 = &create_pair;
  plugin.handle = handle;
  reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
}
