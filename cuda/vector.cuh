// n elements that move as one, 16 bytes at a time if there are as many.
template <class Element, int n>
struct alignas(n * sizeof(Element) < 16 ? n * sizeof(Element) : 16) Vector {
  Element at[n];
};
