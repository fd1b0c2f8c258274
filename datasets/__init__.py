"""One file a data set, each with the same names; a further one is one more file and its entry in data.SOURCES.

    NAME        what it is called in results, e.g. "PointDA-10"
    DOMAINS     {key: folder name}; keys begin with PREFIX and are unique over all data sets
    PREFIX      "" or e.g. "seg_": the direction from seg_F to seg_A is called seg_F_A
    SPLITS      ("train", "test"), or ("train", "val", "test") where sources have a validation split of their own
    PER_POINT   whether labels belong to points
    POINTS      points a cloud in the data set's protocol
    SCANS       keys of the domains that are real scans: a synthetic source is cropped for them
    FRAMED      whether load puts clouds into their frame, z up; else --up says which axis is
    classes(root)                     names of the classes, or of the parts where each point has a label
    load(root, key, split, labels)    points (n, P, 3) float32, z up, and labels int64 (n,) or (n, P); labels=False
                                      reads no label value and gives None, as do own
                                      clouds without labels. UserError names a bad file and a remedy
    size(root, key, split)            how many clouds, without reading them
    check(root, key, counts)          UserError or a warning where the counts of an opened domain show a damaged set
    official(key, counts)             whether the counts are the published ones, so that results may be called NAME

own.py is your own clouds; clouds.py, text.py and formats.py read one cloud of any format; files.py is what all read
with, shapes.py the built-in shapes, download.py the command that fetches PointDA-10.
"""
