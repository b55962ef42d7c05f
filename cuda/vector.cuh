// n elements loaded and stored as one vector, of up to 16 bytes per access.
template <class Element, int n>
struct alignas(n * sizeof(Element) < 16 ? n * sizeof(Element) : 16) Vector {
  Element at[n];
};
