/* -*- c++ -*- ----------------------------------------------------------
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

#ifdef PAIR_CLASS
// clang-format off
PairStyle(pimlip,PairPimlip);
// clang-format on
#else

#ifndef LMP_PAIR_PIMLIP_H
#define LMP_PAIR_PIMLIP_H

#include "pair.h"

#include <memory>
#include <vector>

namespace pimlip {
class Model;
struct Graph;
}    // namespace pimlip

namespace LAMMPS_NS {

class PairPimlip : public Pair {
 public:
  PairPimlip(class LAMMPS *);
  ~PairPimlip() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  double memory_usage() override;

 private:
  std::unique_ptr<pimlip::Model> model;
  std::unique_ptr<pimlip::Graph> graph;
  std::vector<int> species_of_type;    // model's species by atom type, -1 where NULL
  std::string device;                  // auto, cpu or cuda
  int chunk;                           // atoms evaluated at once, 0 = all
  bool any_mass;                       // masses need not be those of the elements
  double energy_unit;                  // eV in the run's units

  // Which atoms are images of one another, renewed with the neighbor lists.
  std::vector<int> owner_rank, owner_index;    // by atom, local and ghost
  std::vector<int> original;                   // by atom: equal for all images of one atom
  bigint neighbor_builds;                      // of the lists that they belong to
  int absent;                                  // group bits of atoms that are taken out of all lists
  std::vector<char> is_absent;                 // by atom: in one of these groups when the lists were built

  // The graph under work.
  std::vector<int> atom_of_row;    // atom that stands for a row of the graph
  std::vector<int> row_of;         // by original: its row, or -1

  // Of an unfolded graph, in which every image of an atom has a row of its own.
  bool unfolded;
  std::vector<double> places;       // (rows, 3)
  std::vector<int> other_image;     // by row: another one of the same atom, or -1

  // How certain forces are, where somebody asks for it (fix pair).
  int uncertainty_flag;               // of this step
  std::vector<double> uncertainty;    // by local atom
  std::vector<double> change;         // (all atoms, 3) forces with other last weights

  void allocate();
  int rank_on_node() const;
  void check_masses();
  void check_neighbors();
  void find_originals();
  int species_of(int) const;
  void build_graph(int, int);
  int add_row(int, const double *);
  void add_edges(int);
  void evaluate();
  void add_results();
  void not_finite();
  void add_centroid_virials();
  void compute_uncertainty(int);
  void add_change();
};

}    // namespace LAMMPS_NS

#endif
#endif
