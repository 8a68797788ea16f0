extension Table {
  /// Writes a word of a table that holds something else than entries, such as a context descriptor.
  package func write(_ word: UInt64, at index: Int) { store(word, at: index) }
}
