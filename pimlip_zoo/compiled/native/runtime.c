/* SPDX-License-Identifier: MIT
   What every native model has around its own operations: lists for the kernels, and whole structures. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline int64_t native_aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Edges of each atom, by centre (they are sorted so) and by neighbour; what is not wanted is null. */
static void native_edge_lists(int64_t nodes, int64_t edges, const int64_t *from, const int64_t *to,
    int32_t *centre, int32_t *neighbour, int64_t *first_c, int64_t *first_n, int32_t *row_n, int32_t *slot_n) {
  if (centre) for (int64_t e = 0; e < edges; e++) centre[e] = (int32_t)from[e];
  if (neighbour) for (int64_t e = 0; e < edges; e++) neighbour[e] = (int32_t)to[e];
  if (first_c) {
    memset(first_c, 0, sizeof(int64_t) * (nodes + 1));
    for (int64_t e = 0; e < edges; e++) first_c[from[e] + 1]++;
    for (int64_t i = 0; i < nodes; i++) first_c[i + 1] += first_c[i];
  }
  if (first_n) {
    memset(first_n, 0, sizeof(int64_t) * (nodes + 1));
    for (int64_t e = 0; e < edges; e++) first_n[to[e] + 1]++;
    for (int64_t i = 0; i < nodes; i++) first_n[i + 1] += first_n[i];
    /* first_n[i] is the next free slot of atom i, which ends where that of atom i + 1 began */
    for (int64_t e = 0; e < edges; e++) {
      const int64_t s = first_n[to[e]]++;
      if (row_n) row_n[s] = (int32_t)from[e];
      if (slot_n) slot_n[s] = (int32_t)e;
    }
    for (int64_t i = nodes; i > 0; i--) first_n[i] = first_n[i - 1];
    first_n[0] = 0;
  }
}

/* Pairs of opposite edges: of_edge[e] is the pair of an edge, both (2, pairs) its first edge, and its second or -1;
   slot_c and slot_n are the edges of all slots by centre and by neighbour, followed by their pairs. Vectors are compared
   up to the rounding of coordinates; other images are farther away by much. The number of pairs. */
static int64_t native_edge_pairs(int64_t atoms, int64_t edges, const int64_t *index, const double *vectors,
    const int64_t *first, const int32_t *by_neighbour, int32_t *of_edge, int64_t *both, int32_t *slot_c, int32_t *slot_n) {
  const int64_t *to = index + edges;
  int32_t *const of = slot_c + edges;
  int64_t pairs = 0;
  for (int64_t e = 0; e < edges; e++) of[e] = -1;
  for (int64_t i = 0; i < atoms; i++)
    for (int64_t e = first[i]; e < first[i + 1]; e++) {
      if (of[e] >= 0) continue;
      const int64_t j = to[e];
      const double *r = vectors + 3 * e;
      of[e] = (int32_t)pairs;
      both[pairs] = e;
      both[edges + pairs] = -1;
      /* Edges of atoms before this one have their pairs already. */
      for (int64_t s = j == i ? e + 1 : first[j]; j >= i && s < first[j + 1]; s++) {
        const double *q = vectors + 3 * s;
        if (to[s] == i && of[s] < 0 && fabs(q[0] + r[0]) < 1e-9 && fabs(q[1] + r[1]) < 1e-9 && fabs(q[2] + r[2]) < 1e-9) {
          of[s] = (int32_t)pairs;
          both[edges + pairs] = s;
          break;
        }
      }
      pairs++;
    }
  memmove(both + pairs, both + edges, sizeof(int64_t) * pairs);
  for (int64_t e = 0; e < edges; e++) slot_c[e] = (int32_t)e;
  if (of_edge) memcpy(of_edge, of, sizeof(int32_t) * edges);
  if (slot_n)
    for (int64_t s = 0; s < edges; s++) {
      slot_n[s] = by_neighbour[s];
      slot_n[edges + s] = of[by_neighbour[s]];
    }
  return pairs;
}

/* Rows that are worked on together, of one species each where there are several; their number. */
static int64_t native_row_tiles(int64_t rows, int64_t num_species, int64_t tile, const int64_t *species,
    int64_t *first, int32_t *order, int32_t *kind) {
  int64_t tiles = 0;
  if (!species) {
    for (int64_t begin = 0; begin < rows; begin += tile) first[tiles++] = begin;
    first[tiles] = rows;
    return tiles;
  }
  int64_t begin = 0;
  for (int64_t s = 0; s < num_species; s++) {
    int64_t count = 0;
    for (int64_t i = 0; i < rows; i++)
      if (species[i] == s) order[begin + count++] = (int32_t)i;
    for (int64_t at = 0; at < count; at += tile) {
      kind[tiles] = (int32_t)s;
      first[tiles++] = begin + at;
    }
    begin += count;
  }
  first[tiles] = rows;
  return tiles;
}

/* model */

/* Energies (atoms) in eV and the gradient (edges, 3) in eV/A of the local atoms' energy by every edge vector.
   edge_index is (2, edges), sorted by centre; memory has pimlip_workspace(atoms, edges) bytes. 0, or what is wrong. */
int pimlip_evaluate(const char *weights, char *memory, int64_t atoms, int64_t edges, int64_t threads,
    const double *vectors, const int64_t *edge_index, const int64_t *species, const double *is_local,
    double *energy, double *gradient) {
  for (int64_t i = 0; i < atoms; i++)
    if (species[i] < 0 || species[i] >= NUM_SPECIES) return 1;
  for (int64_t e = 0; e < edges; e++) {
    if (edge_index[e] < 0 || edge_index[e] >= atoms || edge_index[edges + e] < 0 || edge_index[edges + e] >= atoms)
      return 2;
    if (e && edge_index[e] < edge_index[e - 1]) return 3;
  }
  if (atoms > 0)
    native_model(weights, memory, atoms, edges, threads, vectors, edge_index, species, is_local, energy, gradient);
  return 0;
}

/* A structure: edges by pairs that are closer than the cutoff, then energies, forces (atoms, 3) and virial (3, 3).
   The pairs are those of a list, index (2, pairs) sorted by centre and shift (pairs, 3) in cell vectors, or without
   one all pairs of atoms. memory has pimlip_workspace(atoms, pairs) bytes. The number of edges, or minus what is
   wrong. */
int64_t pimlip_structure(const char *weights, char *memory, int64_t atoms, int64_t threads, double cutoff,
    const double *positions, const double *cell, const int64_t *species, int64_t pairs, const int64_t *index,
    const double *shift, double *energy, double *forces, double *virial) {
  const int64_t most = index ? pairs : atoms * (atoms - 1);
  double *vectors = malloc(sizeof(double) * (6 * most + atoms + 1));
  int64_t *edges = malloc(sizeof(int64_t) * (2 * most + 1)), count = 0;
  if (!vectors || !edges) {
    free(vectors);
    free(edges);
    return -4;
  }
  double *gradient = vectors + 3 * most, *is_local = gradient + 3 * most;
  int64_t *neighbour = edges + most;
  const double limit = cutoff * cutoff;
  for (int64_t i = 0; i < atoms; i++) is_local[i] = 1;
  for (int64_t s = 0, i = 0, j = -1; s < most; s++) {
    if (index) {
      i = index[s];
      j = index[pairs + s];
    } else {
      i = s / (atoms - 1);
      j = s % (atoms - 1);
      if (j >= i) j++;
    }
    double *r = vectors + 3 * count;
    for (int d = 0; d < 3; d++) r[d] = positions[3 * j + d] - positions[3 * i + d];
    if (shift)
      for (int k = 0; k < 3; k++)
        for (int d = 0; d < 3; d++) r[d] += shift[3 * s + k] * cell[3 * k + d];
    if (r[0] * r[0] + r[1] * r[1] + r[2] * r[2] >= limit) continue;
    edges[count] = i;
    neighbour[count++] = j;
  }
  memmove(edges + count, neighbour, sizeof(int64_t) * count);
  neighbour = edges + count;
  const int wrong = pimlip_evaluate(weights, memory, atoms, count, threads, vectors, edges, species, is_local,
      energy, gradient);
  memset(forces, 0, sizeof(double) * 3 * atoms);
  memset(virial, 0, sizeof(double) * 9);
  if (!wrong)
    for (int64_t e = 0; e < count; e++)
      for (int d = 0; d < 3; d++) {
        const double g = gradient[3 * e + d];
        forces[3 * edges[e] + d] += g;
        forces[3 * neighbour[e] + d] -= g;
        for (int k = 0; k < 3; k++) {
          virial[3 * k + d] -= 0.5 * vectors[3 * e + k] * g;
          virial[3 * d + k] -= 0.5 * vectors[3 * e + k] * g;
        }
      }
  free(vectors);
  free(edges);
  return wrong ? -wrong : count;
}
