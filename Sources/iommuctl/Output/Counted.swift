/// A number and what there are so many of: `1 page`, `2 pages`.
func counted(_ number: some BinaryInteger, _ singular: String, _ plural: String? = nil) -> String {
  "\(number) \(number == 1 ? singular : plural ?? singular + "s")"
}
