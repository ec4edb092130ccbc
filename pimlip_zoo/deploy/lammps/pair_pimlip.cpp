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
   pair_style pimlip [chunk N] [device auto|cpu|cuda] [masses check|any]
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

   Parts of single atoms in the virial follow from the energies U_i of all of them,
   W_j = sum_i (r_i - r_j) (x) dU_i/dr_j: with these the heat flux sum_i e_i v_i + sum_j W_j v_j is
   the time derivative of sum_i r_i e_i. The first part is the derivative of sum_i r_i U_i with r_i
   held fixed, for which the model is evaluated three more times, with x, y and z of the local atoms as
   the weights of their energies. Images of an atom are elsewhere: they get rows of their own.

   `fix ID all pair N pimlip uncertainty 1` has the uncertainty of each atom's force every N steps, of native models
   that were exported with it: forces are linear in the last weights of the model, which are replaced by each direction
   of their posterior in turn. Such a step costs as many others as there are directions.
------------------------------------------------------------------------- */

#include "pair_pimlip.h"

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "error.h"
#include "force.h"
#include "group.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pimlip_masses.h"
#include "pimlip_model.h"
#include "pimlip_native.h"
#include "update.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <unordered_map>

using namespace LAMMPS_NS;

namespace {

// Who is a ghost atom, which Comm shows to derived classes alone.
struct BorderGroup : Comm {
  static int of(const Comm &comm) { return comm.*(&BorderGroup::bordergroup); }
};

}    // namespace

/* ---------------------------------------------------------------------- */

PairPimlip::PairPimlip(LAMMPS *lmp) :
    Pair(lmp), graph(new pimlip::Graph), device("auto"), chunk(0), any_mass(false), energy_unit(1.0),
    neighbor_builds(-1), absent(0), unfolded(false), uncertainty_flag(0)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
  comm_forward = 2;
  comm_reverse = 3;
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
  any_mass = false;
  for (int k = 0; k < narg; k += 2) {
    if (k + 1 >= narg) utils::missing_cmd_args(FLERR, std::string("pair_style pimlip ") + arg[k], error);
    if (strcmp(arg[k], "chunk") == 0) {
      chunk = utils::inumeric(FLERR, arg[k + 1], false, lmp);
      if (chunk < 0) error->all(FLERR, "pair_style pimlip: chunk must be 0 (all atoms at once) or a number of atoms");
    } else if (strcmp(arg[k], "device") == 0) {
      device = arg[k + 1];
      if (device != "auto" && device != "cpu" && device != "cuda")
        error->all(FLERR, "pair_style pimlip: device is auto, cpu or cuda, not {}", device);
    } else if (strcmp(arg[k], "masses") == 0) {
      if (strcmp(arg[k + 1], "check") != 0 && strcmp(arg[k + 1], "any") != 0)
        error->all(FLERR, "pair_style pimlip: masses is check or any, not {}", arg[k + 1]);
      any_mass = strcmp(arg[k + 1], "any") == 0;
    } else
      error->all(FLERR,
                 "pair_style pimlip: unknown option {} (known: chunk N, device auto|cpu|cuda, masses check|any)",
                 arg[k]);
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

  if (!any_mass) check_masses();
  // These are fed by pair styles of pairs alone, and would say zero.
  for (const auto *compute : modify->get_compute_list())
    if (utils::strmatch(compute->style, "/tally$"))
      error->all(FLERR, "pair_style pimlip does not feed compute {}: use centroid/stress/atom and pe/atom", compute->style);

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

/* ----------------------------------------------------------------------
   elements named in another order than the data file has them run without a
   word, and are wrong; masses tell
------------------------------------------------------------------------- */

void PairPimlip::check_masses()
{
  std::vector<std::string> named;
  for (int type = 1; type <= atom->ntypes; type++)
    if (map[type] >= 0) named.emplace_back(elements[map[type]]);
  const auto check = [&](int type, double mass) {
    if (map[type] < 0 || pimlip::mass_fits(mass, elements[map[type]], named)) return true;
    error->one(FLERR,
               "pair_style pimlip: pair_coeff calls atom type {} {}, whose mass is {:.5g}, and its mass is {:.5g}: name "
               "the elements in the order of the atom types, or add `masses any` to pair_style pimlip (isotopes)",
               type, elements[map[type]], pimlip::standard_mass(elements[map[type]]), mass);
    return false;
  };
  if (atom->rmass) {
    for (int i = 0; i < atom->nlocal; i++) check(atom->type[i], atom->rmass[i]);
  } else if (atom->mass) {
    for (int type = 1; type <= atom->ntypes; type++)
      if (atom->mass_setflag[type]) check(type, atom->mass[type]);
  }
}

/* ---------------------------------------------------------------------- */

double PairPimlip::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_style pimlip: pair_coeff does not set atom types {} and {}", i, j);
  return model->contract().cutoff;
}

/* ---------------------------------------------------------------------- */

void PairPimlip::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom)
    error->all(FLERR,
               "pair_style pimlip: compute stress/atom halves virials between pairs of atoms, which is wrong for "
               "many-body energies and their heat flux: use compute centroid/stress/atom");
  if (cvflag_atom && model->contract().direct)
    error->all(FLERR,
               "pair_style pimlip: forces of this model are no derivatives of its energy, so that there are no "
               "virials of atoms: export a model with conservative forces");
  unfolded = cvflag_atom != 0;

  // Collective: every rank does this at the same step, also one that has no atoms.
  if (neighbor->ago == 0 || neighbor->ncalls != neighbor_builds) {
    check_neighbors();
    find_originals();
  }

  const int block = chunk > 0 ? chunk : MAX(list->inum, 1);
  for (int first = 0; first < list->inum; first += block) {
    build_graph(first, MIN(first + block, list->inum));
    if (graph->num_local == 0) continue;
    evaluate();
    add_results();
    if (cvflag_atom) add_centroid_virials();
  }
  if (uncertainty_flag)
    compute_uncertainty(block);
  else
    uncertainty.clear();
}

/* ----------------------------------------------------------------------
   what was taken out of the neighbor lists: atoms that see nobody are absent,
   with their own energies; anything else is refused. Groups, and so who is
   taken out, may change whenever lists are built (fix gcmc)
------------------------------------------------------------------------- */

void PairPimlip::check_neighbors()
{
  const std::string must_see = ", and a many-body potential has to see all neighbors";
  if (neighbor->includegroup)
    error->all(FLERR, "pair_style pimlip: `neigh_modify include` leaves out pairs of atoms{}: remove it", must_see);
  if (BorderGroup::of(*comm))
    error->all(FLERR, "pair_style pimlip: `comm_modify group` leaves out ghost atoms{}: remove it", must_see);
  if (list->ijskip)
    for (int i = 1; i <= atom->ntypes; i++)
      for (int j = 1; j <= atom->ntypes; j++)
        if (species_of_type[i] >= 0 && species_of_type[j] >= 0 && list->ijskip[i][j])
          error->all(FLERR, "pair_style pimlip: pairs of atom types {} and {} belong to another pair style or to none{}: name "
                     "NULL for one of them, or use hybrid/overlay", i, j, must_see);

  absent = 0;
  if (!neighbor->exclude) return;
  const std::string mend = must_see +
      ": remove it (`exclude group ID all` takes atoms out altogether; fix setforce holds atoms)";
  if (neighbor->nex_type)
    for (int i = 1; i <= atom->ntypes; i++)
      for (int j = 1; j <= atom->ntypes; j++)
        if (species_of_type[i] >= 0 && species_of_type[j] >= 0 && neighbor->ex_type[i][j])
          error->all(FLERR, "pair_style pimlip: `neigh_modify exclude type {} {}` leaves out pairs of atoms{}", i, j, mend);

  std::vector<int> bits, present, anywhere;
  for (int k = 0; k < neighbor->nex_group; k++) {
    const int one = neighbor->ex1_group[k], other = neighbor->ex2_group[k];    // group 0 is all
    if (one == 0) absent |= group->bitmask[other];
    if (other == 0) absent |= group->bitmask[one];
    if (one != 0 && other != 0) bits.insert(bits.end(), {group->bitmask[one], group->bitmask[other]});
  }
  const size_t molecules = bits.size();
  for (int k = 0; k < neighbor->nex_mol; k++) bits.push_back(group->bitmask[neighbor->ex_mol_group[k]]);
  present.assign(bits.size(), 0);
  anywhere.assign(bits.size(), 0);
  for (int i = 0; i < atom->nlocal; i++)
    for (size_t k = 0; k < bits.size(); k++)
      if ((atom->mask[i] & bits[k]) && !(atom->mask[i] & absent) && species_of_type[atom->type[i]] >= 0) present[k] = 1;
  MPI_Allreduce(present.data(), anywhere.data(), static_cast<int>(bits.size()), MPI_INT, MPI_MAX, world);
  for (size_t k = 0; k < molecules; k += 2)
    if (anywhere[k] && anywhere[k + 1])
      error->all(FLERR, "pair_style pimlip: `neigh_modify exclude group` leaves out pairs of atoms{}", mend);
  for (size_t k = molecules; k < bits.size(); k++)
    if (anywhere[k])
      error->all(FLERR, "pair_style pimlip: `neigh_modify exclude molecule` leaves out pairs of atoms{}", mend);
}

// The model's species of an atom, or -1 where it is not the model's or absent. Who is absent is what the lists were built
// with: a group may change before the next ones (`run N pre no`).

int PairPimlip::species_of(int i) const
{
  return is_absent[i] ? -1 : species_of_type[atom->type[i]];
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

  is_absent.resize(nall);
  for (int i = 0; i < nall; i++) is_absent[i] = (atom->mask[i] & absent) != 0;
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
  places.clear();
  other_image.clear();
  for (int ii = first; ii < last; ii++) {
    const int i = list->ilist[ii];
    if (species_of(i) >= 0) add_row(i, atom->x[i]);
  }
  graph->num_local = static_cast<int64_t>(atom_of_row.size());

  size_t row = 0;
  for (int hop = 0; hop < model->contract().depth; hop++)
    for (const size_t reached = atom_of_row.size(); row < reached; row++) add_edges(static_cast<int>(row));

  for (const int i : atom_of_row) row_of[original[i]] = -1;
}

// The row of an atom; where it is new, this image of it is the one whose neighbors are looked at
// (the nearest one, which has all of them within the halo), or the atom itself if it is local.

int PairPimlip::add_row(int i, const double *place)
{
  const int source = original[i];
  int row = row_of[source];
  if (unfolded)    // images of one atom are at least a box apart
    while (row >= 0) {
      const double *const p = &places[3 * row];
      if (std::abs(p[0] - place[0]) + std::abs(p[1] - place[1]) + std::abs(p[2] - place[2]) < 1e-2) break;
      row = other_image[row];
    }
  if (row >= 0) return row;
  row = static_cast<int>(atom_of_row.size());
  atom_of_row.push_back(source < atom->nlocal ? source : i);
  graph->species.push_back(species_of(i));
  if (unfolded) {
    places.insert(places.end(), place, place + 3);
    other_image.push_back(row_of[source]);
  }
  row_of[source] = row;
  return row;
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
    if (dx * dx + dy * dy + dz * dz >= limit || species_of(j) < 0) continue;
    graph->vectors.insert(graph->vectors.end(), {dx, dy, dz});
    graph->centre.push_back(row);
    if (unfolded) {
      const double place[3] = {places[3 * row] + dx, places[3 * row + 1] + dy, places[3 * row + 2] + dz};
      graph->neighbour.push_back(add_row(j, place));
    } else
      graph->neighbour.push_back(add_row(j, x[j]));
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

  double sum = 0.0;
  for (int64_t row = 0; row < graph->num_local; row++) sum += energy[row];
  for (size_t k = 0; k < graph->vectors.size(); k++) sum += gradient[k];
  for (int64_t k = 0; direct && k < 3 * graph->num_local; k++) sum += direct[k];
  if (!std::isfinite(sum)) not_finite();

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
    if (!vflag_global) continue;
    // xx, yy, zz, xy, xz, yz; summed over the edges it is symmetric, single edges are made so
    const double v[6] = {-r[0] * g[0],
                         -r[1] * g[1],
                         -r[2] * g[2],
                         -0.5 * (r[0] * g[1] + r[1] * g[0]),
                         -0.5 * (r[0] * g[2] + r[2] * g[0]),
                         -0.5 * (r[1] * g[2] + r[2] * g[1])};
    for (int k = 0; k < 6; k++) virial[k] += v[k];
  }
}

// Names what is wrong with a structure of which the model makes NaN or infinity, before anybody goes on with it.

void PairPimlip::not_finite()
{
  for (size_t e = 0; e < graph->centre.size(); e++) {
    const double *const r = &graph->vectors[3 * e];
    if (r[0] * r[0] + r[1] * r[1] + r[2] * r[2] > 1e-12) continue;
    const int i = atom_of_row[graph->centre[e]], j = atom_of_row[graph->neighbour[e]];
    error->one(FLERR, "pair_style pimlip: atoms {} and {} are on one spot", atom->tag[i], atom->tag[j]);
  }
  error->one(FLERR, "pair_style pimlip: the energy or a force is NaN or infinite: is this a structure that can be?");
}

/* ----------------------------------------------------------------------
   W_j of the unfolded graph that was just evaluated
------------------------------------------------------------------------- */

void PairPimlip::add_centroid_virials()
{
  static constexpr int COMPONENT[3][3] = {{0, 3, 4}, {6, 1, 5}, {7, 8, 2}};    // xx, yy, zz, xy, xz, yz, yx, zx, zy

  // Positions count from the middle of the local atoms: W does not depend on the origin, its rounding does.
  double origin[3] = {0.0, 0.0, 0.0};
  for (int64_t row = 0; row < graph->num_local; row++)
    for (int a = 0; a < 3; a++) origin[a] += places[3 * row + a] / static_cast<double>(graph->num_local);

  const auto add = [&](int64_t row, int a, double factor, const double *g) {
    double *const w = cvatom[atom_of_row[row]];
    for (int b = 0; b < 3; b++) w[COMPONENT[a][b]] += energy_unit * factor * g[b];
  };

  // dU/dr_j is the sum of the gradients of the edges that end at j, less those that begin there.
  const double *gradient = model->edge_gradient();
  for (size_t e = 0; e < graph->centre.size(); e++)
    for (int a = 0; a < 3; a++) {
      add(graph->neighbour[e], a, origin[a] - places[3 * graph->neighbour[e] + a], &gradient[3 * e]);
      add(graph->centre[e], a, places[3 * graph->centre[e] + a] - origin[a], &gradient[3 * e]);
    }
  for (int a = 0; a < 3; a++) {
    graph->weights.resize(graph->num_local);
    for (int64_t row = 0; row < graph->num_local; row++) graph->weights[row] = places[3 * row + a] - origin[a];
    evaluate();
    gradient = model->edge_gradient();
    for (size_t e = 0; e < graph->centre.size(); e++) {
      add(graph->neighbour[e], a, 1.0, &gradient[3 * e]);
      add(graph->centre[e], a, -1.0, &gradient[3 * e]);
    }
  }
}

/* ---------------------------------------------------------------------- */

/* ----------------------------------------------------------------------
   |F(d) - F(0)|^2 summed over the directions d, which images on other ranks have a share in
------------------------------------------------------------------------- */

void PairPimlip::compute_uncertainty(int block)
{
  const pimlip::Uncertainty &known = model->uncertainty();
  if (known.directions == 0)
    error->all(FLERR, "pair_style pimlip: this model does not know how certain it is: "
                      "`pimlip-zoo export RUN --format native --uncertainty`");
  const int nlocal = atom->nlocal, nall = nlocal + atom->nghost;
  const bool again = unfolded || block < list->inum;    // else the graph is the one that was just evaluated
  unfolded = false;
  std::vector<double> none;
  uncertainty.assign(nlocal, 0.0);
  for (int k = 0; k <= known.directions; k++) {
    model->use_direction(k);
    change.assign(3 * static_cast<size_t>(nall), 0.0);
    for (int first = 0; first < list->inum; first += block) {
      if (again) build_graph(first, MIN(first + block, list->inum));
      if (graph->num_local == 0) continue;
      evaluate();
      add_change();
    }
    if (comm->nprocs > 1) comm->reverse_comm(this);
    if (k == 0)
      none.assign(change.begin(), change.begin() + 3 * nlocal);
    else
      for (int i = 0; i < 3 * nlocal; i++) uncertainty[i / 3] += (change[i] - none[i]) * (change[i] - none[i]);
  }
  model->use_direction(-1);
  double mine[2] = {0.0, static_cast<double>(list->inum)}, all[2];
  for (int ii = 0; ii < list->inum; ii++) mine[0] += uncertainty[list->ilist[ii]];
  MPI_Allreduce(mine, all, 2, MPI_DOUBLE, MPI_SUM, world);
  const double shared = all[1] > 0.0 ? std::pow(std::sqrt(all[0] / all[1]), known.shared) : 1.0;
  for (double &value : uncertainty)
    value = energy_unit * known.factor * std::pow(std::sqrt(value), known.exponent) * shared;
}

void PairPimlip::add_change()
{
  const double *const gradient = model->edge_gradient();
  for (size_t e = 0; e < graph->centre.size(); e++) {
    const int i = atom_of_row[graph->centre[e]], j = atom_of_row[graph->neighbour[e]];
    for (int d = 0; d < 3; d++) {
      change[3 * i + d] += gradient[3 * e + d];
      change[3 * j + d] -= gradient[3 * e + d];
    }
  }
}

int PairPimlip::pack_reverse_comm(int n, int first, double *buf)
{
  for (int k = 0; k < 3 * n; k++) buf[k] = change[3 * first + k];
  return 3 * n;
}

void PairPimlip::unpack_reverse_comm(int n, int *atoms, double *buf)
{
  for (int k = 0; k < n; k++)
    for (int d = 0; d < 3; d++) change[3 * atoms[k] + d] += buf[3 * k + d];
}

// The names that fix pair asks for.

void *PairPimlip::extract(const char *name, int &dim)
{
  dim = 0;
  return strcmp(name, "uncertainty_flag") == 0 ? &uncertainty_flag : nullptr;
}

void *PairPimlip::extract_peratom(const char *name, int &columns)
{
  columns = 0;
  if (strcmp(name, "uncertainty") != 0) return nullptr;
  // fix pair asks before there are any, without having asked for them, and on ranks without atoms; it reads nlocal numbers
  const size_t least = MAX(atom->nlocal, 1);
  if (uncertainty.size() < least) uncertainty.assign(least, std::numeric_limits<double>::quiet_NaN());
  return uncertainty.data();
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
