/// The domains of an IOMMU, in the order of their numbers. There are few, and walks look them up often: by search, without hashes.
struct DomainTable {
  typealias DomainID = SimulatedIOMMU.DomainID
  typealias Domain = SimulatedIOMMU.Domain

  private var numbers: [Int] = []
  /// As many; none is nil but while it is being changed.
  private var list: [Domain?] = []

  var count: Int { numbers.count }
  var values: [Domain] { list.compactMap { $0 } }

  /// The place of a number, or where it would be. O(log n).
  @inline(__always)
  private func place(of number: Int) -> Int {
    var (low, high) = (0, numbers.count)
    while low < high {
      let middle = (low + high) / 2
      if numbers[middle] < number { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// The area of a domain that has an address, as ``AreaMap/area(at:near:)``: the subscript copies the domain. O(log n) of the domains.
  func area(_ id: DomainID, at address: UInt64, near guess: inout Int) -> AreaMap<SimulatedIOMMU.Mapping>.Area? {
    let place = place(of: id.number)
    guard place < numbers.count, numbers[place] == id.number else { return nil }
    return list[place]?.table.area(at: address, near: &guess)
  }

  /// A domain; nil where there is none. O(log n); O(n) to make and to remove one.
  subscript(id: DomainID) -> Domain? {
    @inline(__always) get {
      let place = place(of: id.number)
      return place < numbers.count && numbers[place] == id.number ? list[place] : nil
    }
    _modify {
      let place = place(of: id.number)
      if place == numbers.count || numbers[place] != id.number {
        numbers.insert(id.number, at: place)
        list.insert(nil, at: place)
      }
      defer {
        if list[place] == nil {
          numbers.remove(at: place)
          list.remove(at: place)
        }
      }
      yield &list[place]
    }
  }
}
