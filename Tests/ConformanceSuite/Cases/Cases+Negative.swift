import IOMMU
import IOMMUSimulation

/// The negative control: a kernel that swallows every UNMAP, and every invalidation of the process. The cases on DMA after
/// unmap must notice.
extension Cases {
  static let negative: [ConformanceCase] = afterUnmap.map { item in
    ConformanceCase(.negative, "negative/" + item.name) { environment in
      let faulting = FaultingKernel(environment.kernel)
      faulting.swallowUnmap()
      faulting.swallowInvalidation()
      do {
        try item.run(in: environment.asking(faulting))
      } catch let failure as Failure {
        // Only the comparison of memory counts, not another failure on the way.
        try expect(failure.description.contains("unmap:"), "It failed otherwise: \(failure)")
        let swallowed =
          environment.translation == .process ? faulting.swallowedInvalidationCount : faulting.swallowedCount
        try expect(swallowed > 0, "Nothing was swallowed")
        return
      }
      throw Failure("With \(faulting.swallowedCount) unmaps swallowed, the case still passes")
    }
  }
}
