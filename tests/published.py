"""Queries as the published sets word them, shortened; the texts are made up."""

PUBLISHED = {
    "fpb": "Analyze the sentiment of this statement extracted from a financial news article. "
    "Provide your answer as either negative, positive or neutral.\nText: Sales rose .\nAnswer:",
    "fiqa_sa": "What is the sentiment of the following financial headline: Positive, Negative, or "
    "Neutral?\nText: Tesco up\nAnswer:",
    "fomc": "Examine the excerpt from a central bank's release below. Classify it as HAWKISH if it "
    "advocates for a tightening of monetary policy.\nText: Rates rise.\nAnswer:",
    "ner": "In the sentences extracted from financial agreements in U.S. SEC filings, identify the "
    "named entities that represent a person ('PER').\nText: Acme pays.\nAnswer:",
    "edtsum": "You are given a text that consists of multiple sentences. Your task is to perform "
    "abstractive summarization on this text.\nText: Acme said.\nAnswer:",
    "ectsum": "Given the following article, please produce a list of 0 and 1 to indicate which "
    "sentences should be included in the final summary.\nText: Hello.\nAnswer:",
    "mlesg": "You're given English news articles related to Environmental, Social, and Corporate "
    "Governance (ESG) issues. Your task is to classify each article.\nText: Water.\nAnswer:",
    "ma": "In this task, you will be given Mergers and Acquisitions (M&A) news articles or tweets. "
    "Your task is to classify each article or tweet.\nText: A may buy B.\nAnswer:",
    "sm_bigdata": "Analyze the information and social media posts to determine if the closing "
    "price of $ba will ascend or descend at 2020-11-02. Please respond with either Rise or Fall.\n"
    "Context: date,open\n2020-10-19,1.2\nAnswer:",
    "sm_acl": "Assess the data and tweets to estimate whether the closing price of $aapl will "
    "escalate or deflate at 2015-10-01. Respond with either Rise or Fall.\nContext: date,open\n"
    "2015-09-17,0.2\nAnswer:",
    "sm_cikm": "Scrutinize the data and tweets to envisage if the closing price of $brk.b will "
    "swell or contract at 2017-11-01. Please affirm either Rise or Fall.\nContext: date,open\n"
    "2017-10-18,0.2\nAnswer:",
    "cra_ccf": "Detect the credit card fraud using the following financial table attributes. "
    "Respond with only 'yes' or 'no'.\nText: 'The client has attributes: V1: 0.144'\nAnswer:",
    "cra_ccfraud": "Detect the credit card fraud with the following financial profile. Respond "
    "with only 'good' or 'bad'. \nText: 'The client is a female'\nAnswer:",
    "german": "Evaluate the creditworthiness of a customer with the following financial profile. "
    "\nText: 'The state of Status of existing checking account is none.'\nAnswer:",
    "australian": "Assess the creditworthiness of a customer using the following table attributes "
    "for financial status. And all the table attribute names including 8 categorical attributes "
    "and 6 numerical attributes and values have been changed.\nText: 'A1: 0'\nAnswer:",
    "lendingclub": "Assess the client's loan status based on the following loan records from "
    "Lending Club. \nText: 'The Installment is 1.'\nAnswer:",
    "polish": "Predict whether the company will face bankruptcy based on the financial profile "
    "attributes provided in the following text. \nFor instance, 'The client has attributes: net "
    "profit / total assets: -0.04'\nText: 'The client'\nAnswer:",
    "taiwan": "Predict whether the company will face bankruptcy based on the financial profile "
    "attributes provided in the following text. \nFor instance, 'The client has attributes:  "
    "ROA(C) before interest and depreciation before interest: 0.499'\nText: 'The client'\nAnswer:",
    "portoseguro": "Identify whether or not to files a claim for the auto insurance policy holder "
    "using the following table attributes.\nText: 'ps_ind_01: 1.0'\nAnswer:",
    "travelinsurance": "Identify the claim status of insurance companies using the following "
    "table attributes.\nText: 'Agency: CWT'\nAnswer:",
    "tatqa": "Please answer the given financial question based on the context.\nContext: |a|b|\n"
    "Question: What is a?\nAnswer:",
    "cfa_easy": "Read the questions and answers carefully, and choose the one you think is "
    "appropriate among the three options A, B and C. Q:Why?,CHOICES: A: a.,B: b.,C: c. Answer:",
    "cfa_challenge": "Carefully read the scenario provided and the subsequent question. Your task "
    "is to select the most appropriate answer from the options A, B and C.\nScenario: S",
}
