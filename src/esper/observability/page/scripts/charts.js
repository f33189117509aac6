// All pictures of a run, by the section that each stands in.

const CHARTS = { curves: startCurves, anatomy: startAnatomy, lanes: startLanes, worth: startWorth, lattice: startLattice };
