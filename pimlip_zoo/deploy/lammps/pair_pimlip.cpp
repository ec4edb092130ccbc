/* ----------------------------------------------------------------------
   LAMMPS - Large-scale Atomic/Molecular Massively Parallel Simulator
   https://www.lammps.org/, Sandia National Laboratories
   LAMMPS development team: developers@lammps.org

   Copyright (2003) Sandia Corporation.  Under the terms of Contract
   DE-AC04-94AL85000 with Sandia Corporation, the U.S. Government retains
   certain rights in this software.  This software is distributed under
   the GNU General Public License.

   See the README file in the top-level LAMMPS directory.
------------------------------------------------------------------------- */
// SPDX-License-Identifier: GPL-2.0-only
// Contributed by the pimlip-zoo developers.

/* ----------------------------------------------------------------------
   pair_style pimlip [chunk N] [device auto|cpu|cuda]
   pair_coeff * * model.nequip.pth H C N O

   A rank evaluates its own atoms and whatever they hear from: the model's
   energies depend on atoms up to `depth` cutoffs away, over `depth` hops
   along edges. The graph is grown hop by hop from the local atoms, with one
   row for each atom however many periodic images of it are met. From this
   follow, without further cases,

     local   depth 1: edges of local atoms alone, any number of ranks;
     folded  one rank: every ghost is an image of a local atom, so that the
             graph is the periodic one and no halo is computed;
     ghost   depth > 1 on several ranks: the halo of depth x cutoff that
             LAMMPS communicates, trimmed to edges centred less than depth
             hops away; a rank never computes more than the folded graph.

   The model returns each atom's energy and the derivative g_ij of the local
   atoms' total energy by every edge vector r_ij = r_j - r_i. Forces are
   F_i += g_ij, F_j -= g_ij, the virial is -sum r_ij (x) g_ij.
------------------------------------------------------------------------- */

#include "pair_pimlip.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pimlip_model.h"
#include "update.h"

#include <cstdlib>
#include <cstring>
#include <thread>
#include <unordered_map>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

PairPimlip::PairPimlip(LAMMPS *lmp) :
    Pair(lmp), graph(new pimlip::Graph), device("auto"), chunk(0), energy_unit(1.0), neighbor_builds(-1)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
  comm_forward = 2;
}

PairPimlip::~PairPimlip()
{
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairPimlip::allocate()
{
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  map = new int[n];
  allocated = 1;
}

/* ---------------------------------------------------------------------- */

void PairPimlip::settings(int narg, char **arg)
{
  chunk = 0;
  device = "auto";
  for (int k = 0; k < narg; k += 2) {
    if (k + 1 >= narg) utils::missing_cmd_args(FLERR, std::string("pair_style pimlip ") + arg[k], error);
    if (strcmp(arg[k], "chunk") == 0) {
      chunk = utils::inumeric(FLERR, arg[k + 1], false, lmp);
      if (chunk < 0) error->all(FLERR, "pair_style pimlip: chunk must be 0 (all atoms at once) or a number of atoms");
    } else if (strcmp(arg[k], "device") == 0) {
      device = arg[k + 1];
      if (device != "auto" && device != "cpu" && device != "cuda")
        error->all(FLERR, "pair_style pimlip: device is auto, cpu or cuda, not {}", device);
    } else
      error->all(FLERR, "pair_style pimlip: unknown option {} (known: chunk N, device auto|cpu|cuda)", arg[k]);
  }
}

/* ----------------------------------------------------------------------
   load the file, map atom types to its species
------------------------------------------------------------------------- */

void PairPimlip::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (!allocated) allocate();
  if (narg < 3 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR, "Use: pair_coeff * * model.nequip.pth element1 element2 ... (one for each atom type)");
  if (narg != 3 + ntypes)
    error->all(FLERR, "pair_coeff for pimlip names {} elements, but there are {} atom types", narg - 3, ntypes);
  map_element2type(narg - 3, arg + 3);

  // Every rank reads the file. The reason of the first that cannot is what all of them report.
  std::string reason;
  try {
    model = std::make_unique<pimlip::Model>(arg[2], device, rank_on_node());
  } catch (const std::exception &err) {
    reason = err.what();
  }
  int failed = reason.empty() ? comm->nprocs : comm->me, first;
  MPI_Allreduce(&failed, &first, 1, MPI_INT, MPI_MIN, world);
  if (first < comm->nprocs) {
    int length = static_cast<int>(reason.size());
    MPI_Bcast(&length, 1, MPI_INT, first, world);
    reason.resize(length);
    MPI_Bcast(&reason[0], length, MPI_CHAR, first, world);
    error->all(FLERR, "pair_style pimlip: {}", reason);
  }

  const auto &known = model->contract().species;
  std::string listed;
  for (const auto &name : known) listed += (listed.empty() ? "" : " ") + name;
  species_of_type.assign(ntypes + 1, -1);
  for (int type = 1; type <= ntypes; type++) {
    if (map[type] < 0) continue;    // NULL: another pair style's atoms
    for (size_t s = 0; s < known.size(); s++)
      if (known[s] == elements[map[type]]) species_of_type[type] = static_cast<int>(s);
    if (species_of_type[type] < 0)
      error->all(FLERR, "pair_style pimlip: atom type {} is {}, which {} does not know (it knows: {})", type,
                 elements[map[type]], arg[2], listed);
  }
  if (comm->me == 0) utils::logmesg(lmp, "pair_style pimlip: {}: {}; species {}\n", arg[2], model->summary(), listed);
}

/* ---------------------------------------------------------------------- */

int PairPimlip::rank_on_node() const
{
  MPI_Comm node;
  int rank, ranks;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &rank);
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  // Without this, every rank would start as many threads as the node has cores.
  if (!std::getenv("OMP_NUM_THREADS"))
    pimlip::Model::set_num_threads(MAX(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks));
  return rank;
}

/* ---------------------------------------------------------------------- */

void PairPimlip::init_style()
{
  const std::string units = update->unit_style;
  if (units == "metal")
    energy_unit = 1.0;
  else if (units == "real")
    energy_unit = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "pair_style pimlip: units are {}, use metal or real", units);

  // A weight of zero takes bonded pairs out of the neighbor list, where the model has to see them.
  if (atom->molecular != Atom::ATOMIC)
    for (int k = 1; k < 4; k++)
      if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
        error->all(FLERR, "pair_style pimlip sees bonded atoms, too: add `special_bonds lj/coul 1.0 1.0 1.0`");

  const bool halo = comm->nprocs > 1 && model->contract().depth > 1;
  if (comm->nprocs > 1 && !force->newton_pair)
    error->all(FLERR, "pair_style pimlip on several ranks needs `newton on`");
  neighbor->add_request(this, halo ? NeighConst::REQ_FULL | NeighConst::REQ_GHOST : NeighConst::REQ_FULL);
  if (halo) {
    if (comm->mode != Comm::SINGLE)
      error->all(FLERR, "pair_style pimlip with message passing on several ranks needs `comm_modify mode single`");
    const double reach = model->contract().depth * model->contract().cutoff + neighbor->skin;
    comm->cutghostuser = MAX(comm->cutghostuser, reach);
  }
  neighbor_builds = -1;
}

double PairPimlip::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_style pimlip: pair_coeff does not set atom types {} and {}", i, j);
  return model->contract().cutoff;
}

/* ---------------------------------------------------------------------- */

void PairPimlip::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);

  // Collective: every rank does this at the same step, also one that has no atoms.
  if (neighbor->ago == 0 || neighbor->ncalls != neighbor_builds) find_originals();

  const int block = chunk > 0 ? chunk : MAX(list->inum, 1);
  for (int first = 0; first < list->inum; first += block) {
    build_graph(first, MIN(first + block, list->inum));
    if (graph->num_local == 0) continue;
    evaluate();
    add_results();
  }
}

/* ----------------------------------------------------------------------
   give all images of an atom one number: the local atom's index, or for atoms
   of other ranks a number from nlocal on
------------------------------------------------------------------------- */

void PairPimlip::find_originals()
{
  const int nlocal = atom->nlocal, nall = nlocal + atom->nghost;
  owner_rank.assign(nall, comm->me);
  owner_index.resize(nall);
  for (int i = 0; i < nlocal; i++) owner_index[i] = i;
  comm->forward_comm(this);

  original.resize(nall);
  std::unordered_map<int64_t, int> remote;
  for (int i = 0; i < nall; i++) {
    if (owner_rank[i] == comm->me) {
      original[i] = owner_index[i];
    } else {
      const int64_t key = (static_cast<int64_t>(owner_rank[i]) << 32) | owner_index[i];
      original[i] = remote.emplace(key, nlocal + static_cast<int>(remote.size())).first->second;
    }
  }
  row_of.assign(nall, -1);
  neighbor_builds = neighbor->ncalls;
}

int PairPimlip::pack_forward_comm(int n, int *atoms, double *buf, int /*pbc_flag*/, int * /*pbc*/)
{
  int m = 0;
  for (int k = 0; k < n; k++) {
    buf[m++] = ubuf(owner_rank[atoms[k]]).d;
    buf[m++] = ubuf(owner_index[atoms[k]]).d;
  }
  return m;
}

void PairPimlip::unpack_forward_comm(int n, int first, double *buf)
{
  int m = 0;
  for (int i = first; i < first + n; i++) {
    owner_rank[i] = static_cast<int>(ubuf(buf[m++]).i);
    owner_index[i] = static_cast<int>(ubuf(buf[m++]).i);
  }
}

/* ----------------------------------------------------------------------
   the graph of the local atoms first..last-1 of the list and of everything
   they hear from, rows and edges in the order in which they are reached
------------------------------------------------------------------------- */

void PairPimlip::build_graph(int first, int last)
{
  graph->clear();
  atom_of_row.clear();
  for (int ii = first; ii < last; ii++)
    if (species_of_type[atom->type[list->ilist[ii]]] >= 0) add_row(list->ilist[ii]);
  graph->num_local = static_cast<int64_t>(atom_of_row.size());

  size_t row = 0;
  for (int hop = 0; hop < model->contract().depth; hop++)
    for (const size_t reached = atom_of_row.size(); row < reached; row++) add_edges(static_cast<int>(row));

  for (const int i : atom_of_row) row_of[original[i]] = -1;
}

// The row of an atom; where it is new, this image of it is the one whose neighbors are looked at
// (the nearest one, which has all of them within the halo), or the atom itself if it is local.

int PairPimlip::add_row(int i)
{
  const int source = original[i];
  if (row_of[source] < 0) {
    row_of[source] = static_cast<int>(atom_of_row.size());
    atom_of_row.push_back(source < atom->nlocal ? source : i);
    graph->species.push_back(species_of_type[atom->type[i]]);
  }
  return row_of[source];
}

void PairPimlip::add_edges(int row)
{
  const int i = atom_of_row[row];
  const double *const *const x = atom->x;
  const double limit = model->contract().cutoff * model->contract().cutoff;
  const int *const neighbors = list->firstneigh[i];
  for (int jj = 0; jj < list->numneigh[i]; jj++) {
    const int j = neighbors[jj] & NEIGHMASK;
    const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
    if (dx * dx + dy * dy + dz * dz >= limit || species_of_type[atom->type[j]] < 0) continue;
    graph->vectors.insert(graph->vectors.end(), {dx, dy, dz});
    graph->centre.push_back(row);
    graph->neighbour.push_back(add_row(j));
  }
}

/* ---------------------------------------------------------------------- */

void PairPimlip::evaluate()
{
  std::string reason;
  try {
    model->evaluate(*graph);
  } catch (const std::exception &err) {
    reason = err.what();
  }
  if (!reason.empty()) error->one(FLERR, "pair_style pimlip: {}", reason);
}

/* ----------------------------------------------------------------------
   energies of the local atoms; forces of all atoms of the graph, those on
   other ranks' atoms are sent home by LAMMPS (newton on)
------------------------------------------------------------------------- */

void PairPimlip::add_results()
{
  double *const *const f = atom->f;
  const double *const energy = model->atomic_energy();
  const double *const gradient = model->edge_gradient();
  const double *const direct = model->forces();

  for (int64_t row = 0; row < graph->num_local; row++) {
    const int i = atom_of_row[row];
    if (eflag_global) eng_vdwl += energy_unit * energy[row];
    if (eflag_atom) eatom[i] += energy_unit * energy[row];
    if (direct)
      for (int d = 0; d < 3; d++) f[i][d] += energy_unit * direct[3 * row + d];
  }

  for (size_t e = 0; e < graph->centre.size(); e++) {
    const int i = atom_of_row[graph->centre[e]], j = atom_of_row[graph->neighbour[e]];
    const double *const r = &graph->vectors[3 * e];
    const double g[3] = {energy_unit * gradient[3 * e], energy_unit * gradient[3 * e + 1],
                         energy_unit * gradient[3 * e + 2]};
    if (!direct)
      for (int d = 0; d < 3; d++) {
        f[i][d] += g[d];
        f[j][d] -= g[d];
      }
    if (!vflag_either) continue;
    // xx, yy, zz, xy, xz, yz; summed over the edges it is symmetric, single edges are made so
    const double v[6] = {-r[0] * g[0],
                         -r[1] * g[1],
                         -r[2] * g[2],
                         -0.5 * (r[0] * g[1] + r[1] * g[0]),
                         -0.5 * (r[0] * g[2] + r[2] * g[0]),
                         -0.5 * (r[1] * g[2] + r[2] * g[1])};
    for (int k = 0; k < 6; k++) {
      if (vflag_global) virial[k] += v[k];
      if (vflag_atom) {
        vatom[i][k] += 0.5 * v[k];
        vatom[j][k] += 0.5 * v[k];
      }
    }
  }
}

/* ---------------------------------------------------------------------- */

double PairPimlip::memory_usage()
{
  double bytes = Pair::memory_usage();
  bytes += static_cast<double>(graph->vectors.capacity()) * sizeof(double);
  bytes += static_cast<double>(graph->centre.capacity() + graph->neighbour.capacity()) * sizeof(int64_t);
  bytes += static_cast<double>(owner_rank.capacity() * 4) * sizeof(int);
  return bytes;
}
