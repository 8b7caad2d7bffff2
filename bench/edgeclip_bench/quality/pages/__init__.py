"""Page retrieval as ViDoRe and Jina-VDR measure it: their files, exact scores, nDCG by trec_eval's rules, reports."""
